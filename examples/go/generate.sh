#!/bin/sh
# Generates the package livefactor.example/contract from the .proto files: generate.sh [FOLDER OF THE CONTRACT]
# It needs protoc, protoc-gen-go and protoc-gen-go-grpc.
set -e
protos=$(cd "${1:-$(dirname "$0")/../node/protos}" && pwd)
cd "$(dirname "$0")"
options=
for file in "$protos"/livefactor/v1/*.proto; do
    name=livefactor/v1/$(basename "$file")
    options="$options --go_opt=M$name=livefactor.example/contract --go-grpc_opt=M$name=livefactor.example/contract"
done
protoc -I"$protos" --go_out=. --go-grpc_out=. --go_opt=module=livefactor.example --go-grpc_opt=module=livefactor.example \
    $options "$protos"/livefactor/v1/*.proto
