// A panel in Go: it calls a node with grpc-go or net/http as Go panels do, and fails where an answer
// is not what such a panel expects. What it needs comes on the standard input, as JSON.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

type setup struct {
	Transport   string
	Address     string
	Key         string
	Certificate string
	Descriptors []byte
	Config      string
	NodeVersion string `json:"node_version"`
	// Users as the JSON of service.User.
	Users []json.RawMessage
}

// How a call ended that was refused, as each transport says it.
type refusal struct {
	code string
	text string
}

func (r *refusal) Error() string { return r.code + ": " + r.text }

// panel is one connection, over either transport.
type panel interface {
	// call sends a message, which may be nil, and returns the reply.
	call(ctx context.Context, method string, request proto.Message) (proto.Message, error)
	// chunked sends the chunks of one sync.
	chunked(ctx context.Context, chunks []proto.Message) error
	// logs reads lines until the context ends.
	logs(ctx context.Context, line func(string)) error
}

var messages *protoregistry.Files

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func message(name string, text string) proto.Message {
	descriptor, err := messages.FindDescriptorByName(protoreflect.FullName("service." + name))
	check(err)
	made := dynamicpb.NewMessage(descriptor.(protoreflect.MessageDescriptor))
	if text != "" {
		check(protojson.Unmarshal([]byte(text), made))
	}
	return made
}

func field(m proto.Message, name string) protoreflect.Value {
	reflected := m.ProtoReflect()
	descriptor := reflected.Descriptor().Fields().ByName(protoreflect.Name(name))
	if descriptor == nil {
		log.Fatalf("%s has no field %s", reflected.Descriptor().FullName(), name)
	}
	return reflected.Get(descriptor)
}

func expect(what string, held bool, found any) {
	if !held {
		log.Fatalf("%s: %v", what, found)
	}
}

func refused(what string, err error, code string, text string) {
	refusal, is := err.(*refusal)
	expect(what, is && refusal.code == code && strings.Contains(refusal.text, text), err)
}

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	var s setup
	check(json.NewDecoder(os.Stdin).Decode(&s))
	var set descriptorpb.FileDescriptorSet
	check(proto.Unmarshal(s.Descriptors, &set))
	files, err := protodesc.NewFiles(&set)
	check(err)
	messages = files

	roots := x509.NewCertPool()
	expect("the node's certificate", roots.AppendCertsFromPEM([]byte(s.Certificate)), s.Certificate)
	trust := &tls.Config{RootCAs: roots, ServerName: "127.0.0.1"}
	dial := map[string]func(string, string, *tls.Config) panel{"grpc": dialGRPC, "rest": dialREST}[s.Transport]
	codes := map[string][4]string{
		"grpc": {"PermissionDenied", "Unavailable", "Unknown", "InvalidArgument"},
		"rest": {"403", "500", "503", "400"},
	}[s.Transport]
	mismatch, notInitialized, failedStart, badRequest := codes[0], codes[1], codes[2], codes[3]

	within := func(seconds time.Duration) context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), seconds*time.Second)
		_ = cancel
		return ctx
	}
	node := dial(s.Address, s.Key, trust)
	stranger := dial(s.Address, "00000000-0000-4000-8000-000000000000", trust)

	log.Print("before a start")
	_, err = stranger.call(within(5), "GetBaseInfo", nil)
	refused("a wrong key", err, mismatch, "api key mismatch")
	info, err := node.call(within(5), "GetBaseInfo", nil)
	check(err)
	expect("not started", !field(info, "started").Bool(), info)
	expect("version", field(info, "node_version").String() == s.NodeVersion, info)
	_, err = node.call(within(5), "Stop", nil)
	refused("nothing to stop", err, notInitialized, "backend not initialized")

	log.Print("start")
	start := func(users []json.RawMessage) (proto.Message, error) {
		text, err := json.Marshal(map[string]any{"config": s.Config, "users": users, "keepAlive": 60})
		check(err)
		return node.call(within(15), "Start", message("Backend", string(text)))
	}
	_, err = node.call(within(15), "Start", message("Backend", `{"config":"{"}`))
	refused("no JSON", err, failedStart, "the config is not valid JSON")
	info, err = start(s.Users[:1])
	check(err)
	expect("started", field(info, "started").Bool(), info)
	// A Go panel that connects anew sends Stop first.
	_, err = node.call(within(5), "Stop", nil)
	check(err)
	_, err = start(s.Users[:1])
	check(err)

	log.Print("logs, on a stream of their own")
	lines := make(chan string, 1000)
	watching, stopWatching := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- node.logs(watching, func(line string) { lines <- line })
	}()
	select {
	case line := <-lines:
		expect("a line", strings.HasPrefix(line, "Xray "), line)
	case <-time.After(5 * time.Second):
		log.Fatal("no log line")
	}

	log.Print("chunks of 2000")
	sync := func(users []json.RawMessage) error {
		var chunks []proto.Message
		for index := 0; index == 0 || index*2000 < len(users); index++ {
			part := users[index*2000 : min(len(users), (index+1)*2000)]
			text, err := json.Marshal(map[string]any{"users": part, "index": index, "last": (index+1)*2000 >= len(users)})
			check(err)
			chunks = append(chunks, message("UsersChunk", string(text)))
		}
		return node.chunked(within(30), chunks)
	}
	for _, count := range []int{1, 100, 101, len(s.Users)} {
		check(sync(s.Users[:count]))
	}
	refused("nobody", sync(nil), badRequest, "no users received")

	log.Print("statistics")
	for _, method := range []string{"GetSystemStats", "GetBackendStats"} {
		_, err := node.call(within(5), method, nil)
		check(err)
	}
	for _, request := range []string{`{"type":"UsersStat","reset":true}`, `{"type":"Outbounds","reset":true}`, `{"type":"Inbounds"}`} {
		_, err := node.call(within(5), "GetStats", message("StatRequest", request))
		check(err)
	}
	_, err = node.call(within(5), "GetUserOnlineStats", message("StatRequest", `{"name":"nobody"}`))
	expect("nobody is online", err != nil, err)

	log.Print("stop")
	stopWatching()
	<-ended
	_, err = node.call(within(5), "Stop", nil)
	check(err)
	info, err = node.call(within(5), "GetBaseInfo", nil)
	check(err)
	expect("stopped", !field(info, "started").Bool(), info)
	fmt.Println("done")
}

// frame is how the Go panel's REST client separates chunks: four bytes, big-endian, and not the
// varint of the contract.
func frame(chunks []proto.Message) []byte {
	var body bytes.Buffer
	for _, chunk := range chunks {
		encoded, err := proto.Marshal(chunk)
		check(err)
		length := uint32(len(encoded))
		body.Write([]byte{byte(length >> 24), byte(length >> 16), byte(length >> 8), byte(length)})
		body.Write(encoded)
	}
	return body.Bytes()
}
