// A livefactor client in Go.
//
//	./generate.sh && go mod tidy
//	go run . localhost:50051
//
// Creates a model, pushes a few purchases exactly once, and asks for a customer's best items at the revision of that push.
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"time"

	"golang.org/x/crypto/blake2b"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/local"
	"google.golang.org/grpc/status"

	pb "livefactor.example/contract"
)

var purchases = [][2]string{
	{"ada", "teapot"},
	{"ada", "cup"},
	{"bob", "teapot"},
	{"bob", "cup"},
	{"bob", "saucer"},
	{"eve", "kite"},
	{"eve", "string"},
}

// key is the 64-bit key of a string id: BLAKE2b with an 8-byte digest, read little-endian.
func key(text string) uint64 {
	hash, err := blake2b.New(8, nil)
	if err != nil {
		log.Fatal(err)
	}
	hash.Write([]byte(text))
	return binary.LittleEndian.Uint64(hash.Sum(nil))
}

func createModel(ctx context.Context, models pb.ModelServiceClient, model string) error {
	_, err := models.CreateModel(ctx, &pb.CreateModelRequest{Model: model, Preset: "purchases"})
	if status.Code(err) == codes.AlreadyExists {
		return nil // an earlier run of this example made it
	}
	return err
}

// pushLabels gives the items their texts, so that answers carry them. Sent twice it changes nothing, so it needs no stamp.
func pushLabels(ctx context.Context, updates pb.UpdateServiceClient, model string) error {
	labels := &pb.Labels{Side: pb.Side_SIDE_ITEM}
	seen := map[string]bool{}
	for _, purchase := range purchases {
		if item := purchase[1]; !seen[item] {
			seen[item] = true
			labels.Ids = append(labels.Ids, key(item))
			labels.Labels = append(labels.Labels, item)
		}
	}
	_, err := updates.ApplyUpdates(ctx, &pb.ApplyUpdatesRequest{
		Model: model, Change: &pb.ApplyUpdatesRequest_Labels{Labels: labels},
	})
	return err
}

// push sends the purchases as one batch, stamped so that a retry is applied once.
func push(ctx context.Context, updates pb.UpdateServiceClient, model, producer string) (*pb.ApplyUpdatesResponse, error) {
	opened, err := updates.OpenProducer(ctx, &pb.OpenProducerRequest{Model: model, ProducerId: producer})
	if err != nil {
		return nil, err
	}
	rows := &pb.Interactions{}
	for _, purchase := range purchases {
		rows.UserIds = append(rows.UserIds, key(purchase[0]))
		rows.ItemIds = append(rows.ItemIds, key(purchase[1]))
	}
	return updates.ApplyUpdates(ctx, &pb.ApplyUpdatesRequest{
		Model:    model,
		Producer: &pb.ProducerStamp{Id: producer, Epoch: opened.Epoch, Sequence: opened.LastSequence + 1},
		Change:   &pb.ApplyUpdatesRequest_Interactions{Interactions: rows},
	})
}

func run(target, model string) error {
	// A server on this machine. For another one take credentials.NewClientTLSFromFile.
	channel, err := grpc.Dial(target, grpc.WithTransportCredentials(local.NewCredentials()))
	if err != nil {
		return err
	}
	defer channel.Close()
	// A first model compiles its kernels.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	updates := pb.NewUpdateServiceClient(channel)
	if err := createModel(ctx, pb.NewModelServiceClient(channel), model); err != nil {
		return err
	}
	if err := pushLabels(ctx, updates, model); err != nil {
		return err
	}
	ack, err := push(ctx, updates, model, "go-client")
	if err != nil {
		return err
	}
	fmt.Printf("pushed %d purchases, visible at revision %d\n", ack.Accepted, ack.Position.Revision)
	best, err := pb.NewScoringServiceClient(channel).Score(ctx, &pb.ScoreRequest{
		Model:       model,
		MinPosition: ack.Position,
		UserIds:     []uint64{key("ada")},
		Target:      &pb.ScoreRequest_TopK{TopK: &pb.TopK{K: 3}},
		WithLabels:  true,
	})
	if err != nil {
		return err
	}
	fmt.Printf("ada's best at revision %d:\n", best.Position.Revision)
	for i, item := range best.Labels {
		fmt.Printf("  %.4f  %s\n", best.Scores[i], item)
	}
	return nil
}

func main() {
	target, model := "localhost:50051", "from-go"
	if len(os.Args) > 1 {
		target = os.Args[1]
	}
	if len(os.Args) > 2 {
		model = os.Args[2]
	}
	if err := run(target, model); err != nil {
		log.Fatal(err)
	}
}
