package main

import (
	"context"
	"crypto/tls"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

const service = "service.NodeService"

type overGRPC struct {
	connection *grpc.ClientConn
	key        string
}

func dialGRPC(address string, key string, trust *tls.Config) panel {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(trust)))
	check(err)
	return &overGRPC{connection, key}
}

func (p *overGRPC) context(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "x-api-key", p.key)
}

func described(method string) protoreflect.MethodDescriptor {
	descriptor, err := messages.FindDescriptorByName(service)
	check(err)
	return descriptor.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(method))
}

func asRefusal(err error) error {
	if err == nil {
		return nil
	}
	return &refusal{status.Code(err).String(), status.Convert(err).Message()}
}

func (p *overGRPC) call(ctx context.Context, method string, request proto.Message) (proto.Message, error) {
	if request == nil {
		request = dynamicpb.NewMessage(described(method).Input())
	}
	reply := dynamicpb.NewMessage(described(method).Output())
	err := p.connection.Invoke(p.context(ctx), "/"+service+"/"+method, request, reply)
	return reply, asRefusal(err)
}

func (p *overGRPC) chunked(ctx context.Context, chunks []proto.Message) error {
	description := &grpc.StreamDesc{ClientStreams: true}
	stream, err := p.connection.NewStream(p.context(ctx), description, "/"+service+"/SyncUsersChunked")
	if err != nil {
		return asRefusal(err)
	}
	for _, chunk := range chunks {
		if err := stream.SendMsg(chunk); err != nil {
			break // The reply says why.
		}
	}
	check(stream.CloseSend())
	return asRefusal(stream.RecvMsg(dynamicpb.NewMessage(described("SyncUsersChunked").Output())))
}

func (p *overGRPC) logs(ctx context.Context, line func(string)) error {
	description := &grpc.StreamDesc{ServerStreams: true}
	stream, err := p.connection.NewStream(p.context(ctx), description, "/"+service+"/GetLogs")
	if err != nil {
		return asRefusal(err)
	}
	check(stream.SendMsg(dynamicpb.NewMessage(described("GetLogs").Input())))
	check(stream.CloseSend())
	for {
		entry := dynamicpb.NewMessage(described("GetLogs").Output())
		if err := stream.RecvMsg(entry); err != nil {
			return asRefusal(err)
		}
		line(field(entry, "detail").String())
	}
}
