# shellcheck shell=bash disable=SC2154 # root and xray are set by the tests that source this
# A pg-node as its installer leaves it. Leaves app, data, port and api_port behind.

key=6f1d2f0e-3c6a-4a53-9d4e-0b1a6c6f2b11

# Below those that the kernel gives to whoever connects: it is used only some seconds later.
free_port() {
  python3 -c 'import random, socket
while True:
    port = random.randint(20000, 30000)
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            continue
    print(port)
    break'
}

# pg_node NAME: in the root, with a certificate as that installer makes it.
pg_node() {
  app=$root/opt/$1 data=$root/var/lib/$1
  port=$(free_port) api_port=$(free_port)
  mkdir -p "$app" "$data/certs" "$data/xray-core" "$data/assets"
  cp "$xray" "$data/xray-core/xray"
  echo geoip >"$data/assets/geoip.dat"
  echo geosite >"$data/assets/geosite.dat"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj /CN=192.0.2.1 \
    -addext "subjectAltName = DNS:localhost,IP:127.0.0.1" \
    -keyout "$data/certs/ssl_key.pem" -out "$data/certs/ssl_cert.pem" 2>/dev/null
  cat >"$app/.env" <<END
# As the installer writes it: blanks behind the sign, quotes here and there.
SERVICE_PORT= $port
NODE_HOST = "127.0.0.1"
API_KEY= $key
SERVICE_PROTOCOL= "rest"
API_PORT= $api_port # of the side service
SSL_CERT_FILE= /var/lib/$1/certs/ssl_cert.pem
SSL_KEY_FILE= /var/lib/$1/certs/ssl_key.pem
XRAY_EXECUTABLE_PATH= /var/lib/$1/xray-core/xray
XRAY_ASSETS_PATH= /var/lib/$1/assets
GENERATED_CONFIG_PATH= /var/lib/$1/generated
LOG_BUFFER_SIZE = 0
STARTUP_LOG_TAIL_SIZE = 50
# DEBUG = true
MAX_LOG_PER_REQUEST = 1000
STATS_UPDATE_INTERVAL_SECONDS='10'
NODE_NOTE=it's here
END
  cat >"$app/docker-compose.yml" <<END
services:
  node:
    container_name: $1
    image: pasarguard/node:latest
    restart: always
    network_mode: host
    env_file: .env
    volumes:
      - /var/lib/$1:/var/lib/$1
END
}
