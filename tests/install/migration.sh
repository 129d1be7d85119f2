# shellcheck shell=bash disable=SC2154 # what run.sh, which sources this, has set
# A pg-node is taken over, below a scratch root.

# shellcheck source=tests/install/pg-node.sh
source tests/install/pg-node.sh

has_line() {
  grep -qxF -- "$1" "$root/etc/raynode/raynode.env" || fail "no line $1 in the settings: $(grep -n "${1%%=*}" "$root/etc/raynode/raynode.env" || true)"
}

# The daemon with these settings, below the root. Its panel, which knows the old certificate and the old
# key, sees no difference.
serves_its_panel() {
  local i state=$root/var/lib/raynode name value
  (
    while IFS='=' read -r name value; do
      export "$name=$value"
    done < <(grep -E '^[A-Z]' "$root/etc/raynode/raynode.env")
    export STATE_DIR=$state RUNTIME_DIR=$work/run
    cd "$root" || exit
    exec "$root/usr/local/bin/raynode" run
  ) >"$work/log" 2>&1 &
  node=$!
  for ((i = 0; i < 100; i++)); do
    ! curl --silent --cacert "$data/certs/ssl_cert.pem" "https://127.0.0.1:$port/" >/dev/null || break
    sleep 0.05
  done
  local asked=(curl --silent --max-time 10 --cacert "$data/certs/ssl_cert.pem" --output /dev/null --write-out '%{http_code}')
  [[ $("${asked[@]}" -H "x-api-key: $key" "https://127.0.0.1:$port/info") == 200 ]] || fail "the panel gets no answer: $(<"$work/log")"
  [[ $("${asked[@]}" -H "x-api-key: ${key/6f/7f}" "https://127.0.0.1:$port/info") == 403 ]] || fail "another key is taken"
  [[ $("${asked[@]}" -H "x-api-key: $key" "https://127.0.0.1:$api_port/") == 200 ]] || fail "the panel's buttons are not served"
  kill "$node"
  wait "$node" || fail "the node ends with $?: $(<"$work/log")"
  node=
}

test_migration_needs_no_change_in_the_panel() {
  new_root
  pg_node pg-node
  before=$(cd "$root" && find opt var/lib/pg-node -printf '%p %m %T@\n' && find opt var/lib/pg-node -type f -exec sha256sum {} +)
  installs install
  has_line "SERVICE_PORT=$port"
  has_line "NODE_HOST=127.0.0.1"
  has_line "API_KEY=$key"
  has_line "SERVICE_PROTOCOL=rest"
  has_line "API_PORT=$api_port"
  has_line "STARTUP_LOG_TAIL_SIZE=50"
  # Nothing is lost: neither what is not known, nor what the node would refuse.
  has_line "#MAX_LOG_PER_REQUEST=1000"
  has_line "#STATS_UPDATE_INTERVAL_SECONDS=10"
  has_line "#NODE_NOTE=it's here"
  has_line "#LOG_BUFFER_SIZE=0"
  has_line "#GENERATED_CONFIG_PATH=/var/lib/pg-node/generated"
  says "MAX_LOG_PER_REQUEST"
  says "LOG_BUFFER_SIZE: is \"0\""
  ! grep -q "$key" "$work/said" || fail "shows the key"
  [[ $(grep -c '^[A-Z]' "$root/etc/raynode/raynode.env") == 6 ]] || fail "sets something else: $(grep '^[A-Z]' "$root/etc/raynode/raynode.env")"
  mode_is 640 /etc/raynode/raynode.env
  local state=$root/var/lib/raynode
  cmp "$data/certs/ssl_cert.pem" "$state/certs/ssl_cert.pem" || fail "another certificate"
  cmp "$data/certs/ssl_key.pem" "$state/certs/ssl_key.pem" || fail "another key of the certificate"
  mode_is 600 /var/lib/raynode/certs/ssl_key.pem
  mode_is 700 /var/lib/raynode/certs
  local version
  version=$("$xray" version | sed -n '1s/^Xray \([0-9.]*\).*/\1/p')
  [[ $(readlink "$state/cores/current") == "$version" ]] || fail "the core is not the current one"
  cmp "$xray" "$state/cores/current/xray" || fail "another core"
  mode_is 755 "/var/lib/raynode/cores/$version/xray"
  cmp "$data/assets/geoip.dat" "$state/assets/current/geoip.dat" || fail "other geo files"
  says "systemctl disable --now raynode"
  says "docker compose -f $app/docker-compose.yml -p pg-node up -d"
  [[ $(cd "$root" && find opt var/lib/pg-node -printf '%p %m %T@\n' && find opt var/lib/pg-node -type f -exec sha256sum {} +) == "$before" ]] ||
    fail "the old node was changed"
  serves_its_panel
}

test_migration_happens_once() {
  new_root
  pg_node pg-node
  installs install
  before=$(listing)
  installs install
  is_as "$before"
  says "nothing changed"
  installs install --migrate "$app"
  is_as "$before"
  says "nothing changed"
}

test_migration_of_one_with_a_name() {
  new_root
  pg_node second
  installs install --migrate "$app"
  has_line "SERVICE_PORT=$port"
  cmp "$data/certs/ssl_cert.pem" "$root/var/lib/raynode/certs/ssl_cert.pem" || fail "another certificate"
  serves_its_panel
}

test_migration_looks_into_the_volumes() {
  new_root
  pg_node pg-node
  mkdir -p "$root/srv"
  mv "$data" "$root/srv/data"
  data=$root/srv/data
  sed -i 's|- /var/lib/pg-node:|- "/srv/data:|; s|:/var/lib/pg-node$|:/var/lib/pg-node:rw"|' "$app/docker-compose.yml"
  installs install
  cmp "$data/certs/ssl_cert.pem" "$root/var/lib/raynode/certs/ssl_cert.pem" || fail "another certificate"
  serves_its_panel
}

# Where each generation of the old node looks when its .env does not say.
test_migration_knows_where_certificates_usually_are() {
  local folder
  for folder in pg-node pasarguard gozargah-node; do
    new_root
    pg_node pg-node
    sed -i '/^SSL_/d' "$app/.env"
    if [[ $folder != pg-node ]]; then
      mv "$data" "$root/var/lib/$folder"
      data=$root/var/lib/$folder
      sed -i "s|- /var/lib/pg-node:.*|- /var/lib/$folder:/var/lib/$folder|" "$app/docker-compose.yml"
    fi
    installs install
    cmp "$data/certs/ssl_cert.pem" "$root/var/lib/raynode/certs/ssl_cert.pem" || fail "$folder: another certificate"
    cmp "$data/certs/ssl_key.pem" "$root/var/lib/raynode/certs/ssl_key.pem" || fail "$folder: another key"
    rm -rf "$root"
  done
}

test_migration_reads_relative_paths_from_the_old_folder() {
  local volumes
  # In the container they begin in /app; one without a container begins where its .env is.
  # shellcheck disable=SC2016 # to the last line
  for volumes in 's|- /var/lib/pg-node:.*|- ./own:/app/files/|' '/volumes:/,$d'; do
    new_root
    pg_node pg-node
    mv "$data" "$app/own"
    ln -s own "$app/files"
    data=$app/own
    sed -i "$volumes" "$app/docker-compose.yml"
    sed -i 's|/var/lib/pg-node/|./files/|; s|= ./files/assets|= files/assets|' "$app/.env"
    installs install
    cmp "$data/certs/ssl_cert.pem" "$root/var/lib/raynode/certs/ssl_cert.pem" || fail "another certificate"
    cmp "$xray" "$root/var/lib/raynode/cores/current/xray" || fail "another core"
    cmp "$data/assets/geoip.dat" "$root/var/lib/raynode/assets/current/geoip.dat" || fail "other geo files"
    serves_its_panel
    rm -rf "$root"
  done
}

test_migration_of_one_without_a_container() {
  new_root
  pg_node pg-node
  rm "$app/docker-compose.yml"
  mkdir -p "$root/etc/ssl/own"
  mv "$data/certs" "$root/etc/ssl/own/"
  data=$root/etc/ssl/own
  sed -i 's|/var/lib/pg-node/certs|/etc/ssl/own/certs|' "$app/.env"
  installs install
  cmp "$data/certs/ssl_cert.pem" "$root/var/lib/raynode/certs/ssl_cert.pem" || fail "another certificate"
  serves_its_panel
}

# A volume within a volume hides what the outer one has there; one may be a file.
test_migration_takes_the_innermost_volume() {
  new_root
  pg_node pg-node
  mkdir -p "$root/srv"
  mv "$data/certs/ssl_cert.pem" "$data/certs/ssl_key.pem" "$root/srv/"
  echo hidden | tee "$data/certs/ssl_cert.pem" >"$data/certs/ssl_key.pem"
  printf '      - /srv/%s:/var/lib/pg-node/certs/%s:ro\n' ssl_cert.pem ssl_cert.pem ssl_key.pem ssl_key.pem >>"$app/docker-compose.yml"
  installs install
  cmp "$root/srv/ssl_cert.pem" "$root/var/lib/raynode/certs/ssl_cert.pem" || fail "another certificate"
  cmp "$root/srv/ssl_key.pem" "$root/var/lib/raynode/certs/ssl_key.pem" || fail "another key"
}

test_migration_does_not_overwrite_settings() {
  new_root
  installs install
  pg_node pg-node
  refuses "never overwritten" install --migrate "$app" --from-url "$url"
  before=$(listing)
  installs install
  is_as "$before"
  says "is not taken over"
}

test_migration_can_be_left_out() {
  new_root
  pg_node pg-node
  installs install --no-migrate
  cmp -s "$root/etc/raynode/raynode.env" .env.example || fail "settings were taken over"
  new_root
  refuses "there is no" install --migrate "$root/opt" --from-url "$url"
}

test_migration_says_what_is_missing() {
  new_root
  pg_node pg-node
  rm "$data/certs/ssl_key.pem"
  echo nothing >"$data/xray-core/xray"
  sed -i "s/^API_KEY=.*/API_KEY= not-a-uuid/" "$app/.env"
  installs install
  says "the panel has to be given the new one"
  says "does not run here, so it is not taken over"
  says "API_KEY: is (hidden)"
  ! grep -q not-a-uuid "$work/said" || fail "shows the key"
  has_line "#API_KEY=not-a-uuid"
  [[ ! -e $root/var/lib/raynode/certs && ! -L $root/var/lib/raynode/cores/current ]] || fail "half of it was taken"
}

# Nothing in an .env is run, whatever is in it.
test_migration_runs_nothing() {
  new_root
  pg_node pg-node
  # shellcheck disable=SC2016 # as it stands there
  printf '%s\n' 'CERT_SAN=$(touch '"$work"'/ran)' 'X`touch '"$work"'/ran`=1' 'A;touch '"$work"'/ran=1' \
    'STOP_GRACE=`touch '"$work"'/ran`' "Y='; touch $work/ran; '" >>"$app/.env"
  installs install
  [[ ! -e $work/ran ]] || fail "something was run"
  has_line "SERVICE_PORT=$port"
  # shellcheck disable=SC2016
  has_line '#STOP_GRACE=`touch '"$work"'/ran`'
}
