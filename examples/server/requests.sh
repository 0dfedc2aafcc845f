#!/bin/sh
# The routes with curl: `sh examples/server/requests.sh [URL]`.
set -e
url=${1:-http://127.0.0.1:30000}
ask() {
    path=$1
    shift
    curl -sS --fail-with-body -H 'content-type: application/json' "$@" "$url$path"
    echo
}
ask /health
ask /v1/models
ask /v1/chat/completions -d '{"messages": [{"role": "user", "content": "Say hello."}], "temperature": 0, "max_tokens": 8}'
ask /v1/completions -d '{"prompt": "The capital of France is", "temperature": 0, "max_tokens": 4}'
ask /generate -d '{"text": "The capital of France is", "sampling_params": {"temperature": 0, "max_new_tokens": 4}}'
ask /generate -d '{"text": "An even number:", "sampling_params": {"regex": "[0-9]*[02468]", "max_new_tokens": 8}}'
ask /tokenize -d '{"prompt": "Hello, world"}'
ask /get_server_info
