#!/usr/bin/env bash
# Measures the router beside its peers, and prints the table of docs/benchmarks.md: each router before a stand-in that says one token every 5 ms, the same load on
# all of them in turns, on one machine in one run. Peers: smg (before a gRPC engine, so that it tokenises as ours does), vllm-router and nginx (before an HTTP
# server). What cannot be installed is left out, and said.
#
#   scripts/bench-router.sh [--rounds 3] [--seconds 5] [--streams 10000] [--no-peers] [--bin DIR]
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=3 seconds=5 streams=10000 peers=yes bin=
while [ $# -gt 0 ]; do
  case "$1" in
    --rounds) rounds=$2; shift 2 ;;
    --seconds) seconds=$2; shift 2 ;;
    --streams) streams=$2; shift 2 ;;
    --no-peers) peers=no; shift ;;
    --bin) bin=$2; shift 2 ;;
    *) sed -n '6s/^# *//p' "$0" >&2; exit 2 ;;
  esac
done

work=target/bench-router
model=demo/m1-demo
results=$work/results.jsonl
mkdir -p "$work"
rm -f "$results" "$work"/*.log
say() { printf '%s\n' "$*" >&2; }

# --bin: ready binaries, of another build.
if [ -z "$bin" ]; then
  cargo build --release -p m1-router -p m1-double -p m1-bench-router
  bin=target/release
fi
router=$bin/m1-router bench=$bin/bench-router double=$bin/m1-double

# Every open stream is a file of the router and one of the client.
ulimit -n "$(ulimit -Hn)"

pids=()
stop_all() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
  done
  wait 2>/dev/null || true
  pids=()
}
trap stop_all EXIT

# Starts a stand-in; its address goes to $address.
engine() {
  local out="$work/engine-$1-${#pids[@]}.out"
  "$double" "$@" >"$out" 2>"$work/engine.log" &
  pids+=($!)
  for _ in $(seq 100); do
    address=$(sed -n 's/^ready //p' "$out")
    [ -n "$address" ] && return
    sleep 0.1
  done
  say "bench-router: the stand-in $1 did not start"; exit 1
}

port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Waits until a router at port $1 answers a chat; fails after a minute.
answers() {
  local body='{"model":"MiniMax-M1","messages":[{"role":"user","content":"x"}],"stream":true,"max_tokens":1}'
  for _ in $(seq 120); do
    if curl -sf -m 5 -o /dev/null -H 'content-type: application/json' -d "$body" "http://127.0.0.1:$1/v1/chat/completions"; then return 0; fi
    sleep 0.5
  done
  return 1
}

# Starts our router before the stand-in at $address with a window of $1; sets $own_port and $own_pid.
own() {
  own_port=$(port)
  "$router" --listen "127.0.0.1:$own_port" --model "$model" --served-name MiniMax-M1 --max-context "$1" --workers "$address" 2>"$work/m1-router-$1.log" &
  own_pid=$!
  pids+=("$own_pid")
  answers "$own_port" || { say "bench-router: m1-router did not become ready; see $work/m1-router-$1.log"; exit 1; }
}

measure() {
  local what=$1; shift
  timeout 300 "$bench" "$what" --into "$results" "$@" || say "bench-router: $what was not measured"
}

# --- The peers. Each is "NAME PORT PID".
started=()
peer() {
  local name=$1 at=$2; shift 2
  "$@" >"$work/$name.log" 2>&1 &
  pids+=($!)
  if answers "$at"; then started+=("$name $at ${pids[-1]}"); else say "bench-router: $name does not serve; see $work/$name.log"; fi
}

start_peers() {
  local venv=$work/venv stamp
  stamp="$venv/$(sha256sum scripts/requirements-bench.txt | cut -c1-16)"
  if [ ! -e "$stamp" ]; then
    if python3 -m venv --clear "$venv" && timeout 600 "$venv/bin/pip" --quiet --disable-pip-version-check install --require-hashes --only-binary=:all: -r scripts/requirements-bench.txt; then
      touch "$stamp"
    else
      say "bench-router: smg and vllm-router cannot be installed; going on without them"
    fi
  fi
  local http=$1
  if [ -e "$stamp" ]; then
    engine vllm --folder "$PWD/$model"
    local at; at=$(port)
    peer smg "$at" "$venv/bin/smg" launch --host 127.0.0.1 --port "$at" --worker-urls "grpc://$address" --backend vllm --model-path "$PWD/$model" \
      --policy round_robin --max-concurrent-requests 4096 --log-level warn --worker-startup-check-interval 1 --prometheus-port "$(port)"
    at=$(port)
    peer vllm-router "$at" "$venv/bin/vllm-router" --host 127.0.0.1 --port "$at" --worker-urls "http://$http" --policy round_robin \
      --max-concurrent-requests 4096 --log-level warning \
      --worker-startup-check-interval 1 --prometheus-port "$(port)"
  fi
  local nginx; nginx=$(command -v nginx || true)
  if [ -z "$nginx" ] && command -v apt-get >/dev/null; then
    nginx=$work/nginx/usr/sbin/nginx
    if [ ! -e "$nginx" ]; then
      (cd "$work" && timeout 120 apt-get download nginx >/dev/null 2>&1 && dpkg-deb -x nginx_*.deb nginx && rm -f nginx_*.deb) || true
    fi
    [ -x "$nginx" ] || { say "bench-router: nginx cannot be had (not in PATH, apt-get download nginx failed); going on without it"; nginx=; }
  fi
  [ -n "$nginx" ] || return 0
  nginx_version=$("$nginx" -v 2>&1 | sed 's/.*nginx\///')
  local at; at=$(port)
  mkdir -p "$work/nginx-run"
  cat >"$work/nginx.conf" <<CONF
worker_processes 2;
daemon off;
pid $PWD/$work/nginx-run/pid;
error_log stderr warn;
events { worker_connections 16384; }
http {
  access_log off;
  client_body_temp_path $PWD/$work/nginx-run/body;
  proxy_temp_path $PWD/$work/nginx-run/proxy;
  fastcgi_temp_path $PWD/$work/nginx-run/fastcgi;
  uwsgi_temp_path $PWD/$work/nginx-run/uwsgi;
  scgi_temp_path $PWD/$work/nginx-run/scgi;
  keepalive_requests 1000000000;
  upstream engine { server $http; keepalive 256; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:$at;
    location / { proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }
  }
}
CONF
  peer nginx "$at" "$nginx" -c "$PWD/$work/nginx.conf" -p "$PWD/$work/nginx-run/"
}

# --- Speed: the same load on everybody, in turns.
nginx_version=none
engine openai; direct=$address
engine worker; direct_grpc=$address; own 4096
[ "$peers" = no ] || start_peers "$direct"
everybody=("m1-router $own_port $own_pid" "${started[@]}")
for round in $(seq "$rounds"); do
  say "round $round of $rounds"
  measure first --name direct --address "$direct"
  measure first --name "direct, gRPC" --address "$direct_grpc" --grpc
  for one in "${everybody[@]}"; do
    read -r name at pid <<<"$one"
    measure first --name "$name" --address "127.0.0.1:$at" --pid "$pid"
    measure streams --name "$name" --address "127.0.0.1:$at" --pid "$pid" --seconds "$seconds"
    measure streams --name "$name" --address "127.0.0.1:$at" --pid "$pid" --seconds "$seconds" --connections 512 --busy
    # As it comes it gathers the tokens of a short answer into one event, which is less work. Made to send each, it sends its usage beside it, which is more.
    [ "$name" != smg ] || measure streams --name "smg, every token" --address "127.0.0.1:$at" --pid "$pid" --seconds "$seconds" --every-token
  done
  measure streams --name direct --address "$direct" --seconds "$seconds"
  measure streams --name direct --address "$direct" --seconds "$seconds" --connections 512 --busy
done
measure refusal --name m1-router --address "127.0.0.1:$own_port" --pid "$own_pid"
stop_all

# --- Memory of open streams, and long texts: our router alone, started anew.
engine worker --hold-after 1; own 4096
measure open --name m1-router --address "127.0.0.1:$own_port" --pid "$own_pid" --count "$streams"
stop_all
engine worker --max-context 2000000; own 2000000
measure tokenize --name m1-router --address "127.0.0.1:$own_port" --pid "$own_pid" --tokenizer "$model/tokenizer.json"
stop_all

version() { "$work/venv/bin/pip" --disable-pip-version-check show "$1" 2>/dev/null | sed -n 's/^Version: //p'; }
echo "m1-router of $(git rev-parse --short HEAD 2>/dev/null || echo '?'); smg $(version smg), vllm-router $(version vllm-router), nginx $nginx_version; $(nproc) cores, $(date -u +%F); best of $rounds rounds of $seconds s"
echo
"$bench" table "$results"
