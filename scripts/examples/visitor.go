// A visitor becomes a person, in Go. Stubs: buf generate protos, with protoc-gen-go and protoc-gen-go-grpc.
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	pb "example.com/yours/gen/onefold/v1"
)

// What the Python client does by itself: spread the calls, and send those again that did not reach a server.
const serviceConfig = `{"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [{"name": [{}], "retryPolicy": {
  "maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "2s", "backoffMultiplier": 2,
  "retryableStatusCodes": ["UNAVAILABLE"]}}]}`

func main() {
	connection, err := grpc.NewClient(os.Args[1],
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(serviceConfig))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+os.Args[2])

	events := pb.NewEventsServiceClient(connection)
	identity := pb.NewIdentityServiceClient(connection)
	ada := &pb.Identifiers{Email: "ada.gopher@example.com"}

	// An event_id, or a request_id on other writes, makes it safe to send the call again.
	event := &pb.NewEvent{AnonymousId: "example-3", Name: "Viewed Pizza", EventId: "go-1"}
	if _, err := events.Track(ctx, &pb.TrackRequest{Event: event}); err != nil {
		log.Fatal(err)
	}
	link := &pb.IdentifyRequest{Identifiers: ada, AnonymousId: "example-3", RequestId: "go-2"}
	if _, err := identity.Identify(ctx, link); err != nil {
		log.Fatal(err)
	}
	page, err := events.ListEvents(ctx, &pb.ListEventsRequest{Subject: &pb.ListEventsRequest_Identifiers{Identifiers: ada}})
	if err != nil {
		log.Fatal(err)
	}
	for _, found := range page.Events {
		fmt.Println(found.Name)
	}
}
