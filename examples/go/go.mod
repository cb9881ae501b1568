module livefactor.example

go 1.19

require (
	golang.org/x/crypto v0.23.0
	google.golang.org/grpc v1.64.0
	google.golang.org/protobuf v1.34.1
)
