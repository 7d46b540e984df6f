#!/bin/sh
# What a container of the `ray` image does: token | head | node | fleet STUDY MODULE:FUNCTION ... | healthy.
# RAY_HEAD is where the head listens, as host:port; RAY_AUTH_TOKEN_PATH the token's file; RAY_OBJECT_STORE_BYTES, RAY_CPUS.
set -eu

join() {
    # The address of ours that leads to the head. Ray's own guess needs a way to the internet.
    address=$(python -c 'import os, socket
host, _, port = os.environ["RAY_HEAD"].rpartition(":")
with socket.socket(type=socket.SOCK_DGRAM) as s:
    s.connect((host, int(port)))
    print(s.getsockname()[0])')
    ray start --disable-usage-stats --include-log-monitor=false --log-color=false --node-ip-address="$address" \
        --object-store-memory="${RAY_OBJECT_STORE_BYTES:-268435456}" "$@"
}

role=$1
shift
if [ "$role" != token ] && [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
    echo "there is no token in $RAY_AUTH_TOKEN_PATH: run this image with the command 'token' first" >&2
    exit 2
fi
case "$role" in
token)
    umask 077
    if [ ! -s "$RAY_AUTH_TOKEN_PATH" ]; then
        python -c 'import secrets; print(secrets.token_hex(32))' >"$RAY_AUTH_TOKEN_PATH.draft"
        mv "$RAY_AUTH_TOKEN_PATH.draft" "$RAY_AUTH_TOKEN_PATH"
    fi
    ;;
head)
    join --head --port="${RAY_HEAD##*:}" --include-dashboard=false --num-cpus=0 --block
    ;;
node)
    join --address="$RAY_HEAD" ${RAY_CPUS:+--num-cpus="$RAY_CPUS"} --block
    ;;
fleet)
    join --address="$RAY_HEAD" --num-cpus=0  # a driver must stand on a node; this one evaluates nothing
    exec blackbox worker "$@"
    ;;
healthy)
    exec ray health-check --address "$RAY_HEAD" --skip-version-check
    ;;
*)
    echo "expected token, head, node, fleet or healthy, got $role" >&2
    exit 2
    ;;
esac
