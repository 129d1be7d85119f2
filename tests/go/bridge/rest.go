package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net/http"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"
)

var routes = map[string][2]string{
	"Start":              {"POST", "/start"},
	"Stop":               {"PUT", "/stop"},
	"GetBaseInfo":        {"GET", "/info"},
	"GetStats":           {"GET", "/stats"},
	"GetSystemStats":     {"GET", "/stats/system"},
	"GetBackendStats":    {"GET", "/stats/backend"},
	"GetUserOnlineStats": {"GET", "/stats/user/online"},
}

type overREST struct {
	client *http.Client
	base   string
	key    string
}

func dialREST(address string, key string, trust *tls.Config) panel {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: trust}}
	return &overREST{client, "https://" + address, key}
}

func (p *overREST) send(ctx context.Context, method string, path string, body io.Reader) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, p.base+path, body)
	check(err)
	request.Header.Set("x-api-key", p.key)
	request.Header.Set("Content-Type", "application/x-protobuf")
	response, err := p.client.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		check(err)
		return nil, &refusal{strconv.Itoa(response.StatusCode), string(text)}
	}
	return response, nil
}

func (p *overREST) call(ctx context.Context, method string, request proto.Message) (proto.Message, error) {
	var body []byte
	if request != nil {
		encoded, err := proto.Marshal(request)
		check(err)
		body = encoded
	}
	route := routes[method]
	response, err := p.send(ctx, route[0], route[1], bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	encoded, err := io.ReadAll(response.Body)
	check(err)
	reply := dynamicpb.NewMessage(described(method).Output())
	return reply, proto.Unmarshal(encoded, reply)
}

func (p *overREST) chunked(ctx context.Context, chunks []proto.Message) error {
	response, err := p.send(ctx, "PUT", "/users/sync/chunked", bytes.NewReader(frame(chunks)))
	if err != nil {
		return err
	}
	return response.Body.Close()
}

func (p *overREST) logs(ctx context.Context, line func(string)) error {
	response, err := p.send(ctx, "GET", "/logs", nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if text := strings.TrimSpace(lines.Text()); text != "" {
			line(text)
		}
	}
	return lines.Err()
}
