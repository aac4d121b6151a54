#!/usr/bin/env bash
# Runs a command with a Docker daemon at hand, as root on a Debian machine: `tests/deploy/images/daemon.sh COMMAND...`
# Where a daemon answers already, it is used. Otherwise one is started in a Debian tree of its own under build/docker, and
# ended with the command; packages and packet filter of the machine stay as they are. Base images are made of Debian's
# packages, because such a machine may reach no registry of images. Where none of this works, a line says why and the
# command runs all the same.
set -euo pipefail
cd "$(dirname "$0")/../../.."
command=("$@") state=$PWD/build/docker

without() {
    echo "No Docker daemon: $1." >&2
    exec "${command[@]}"
}

# Arguments: name of the archive, Debian's release, packages, and what else mmdebstrap is told.
archive() {
    [ -e "$state/$1.tar" ] && return
    mmdebstrap --quiet --variant=minbase --include="$3" "${@:4}" "$2" "$state/partial-$1.tar" && mv "$state/partial-$1.tar" "$state/$1.tar"
}

make_archives() {
    # What pip is told here, it is told in the image that builds, and the certificates that this machine trusts are there.
    local certificates=/etc/ssl/certs/ca-certificates.crt packages="python3,python-is-python3" building=()
    [ ! -e $certificates ] || building+=(--customize-hook="upload $certificates $certificates")
    [ ! -d "${PIP_FIND_LINKS:-}" ] || building+=(--customize-hook="mkdir -p \"\$1$PIP_FIND_LINKS\"" --customize-hook="copy-in $PIP_FIND_LINKS $(dirname "$PIP_FIND_LINKS")")
    archive slim bookworm "$packages" &
    archive daemon trixie ca-certificates,docker.io,docker-cli,docker-compose,docker-buildx,iptables,kmod,procps,iproute2,tini
    archive services trixie redis-server,prometheus
    archive build bookworm "$packages,python3-venv,python3-pip,python3-dev,gcc,libc6-dev,ca-certificates" "${building[@]}"
    wait $!
}

# In a mount namespace of its own, whose root becomes the tree; this checkout and the socket's folder are where they are
# outside. Arguments: the checkout, the state's folder in it, the socket's folder.
start_daemon() {
    local root=$2/root
    mount --bind "$root" "$root"
    for folder in proc sys dev; do mount --rbind "/$folder" "$root/$folder"; done
    mount -t tmpfs tmpfs "$root/run"
    for folder in "$1" "$3"; do
        mkdir -p "$root$folder"
        mount --bind "$folder" "$root$folder"
    done
    cp /etc/resolv.conf /etc/hosts "$root/etc/"
    mkdir -p "$root/before"
    cd "$root"
    pivot_root . before
    umount --lazy /before
    # Ports are published by a proxy and images are built on the machine's network: no packet has to be filtered.
    exec dockerd --host "unix://$3/docker.sock" --group 1000 --data-root "$2/data" --exec-root /run/docker --pidfile /run/docker.pid \
        --iptables=false --ip6tables=false --ip-masq=false --ip-forward=false
}

import() {
    docker image inspect "$2" > /dev/null 2>&1 || docker import "${@:3}" - "$2" < "$state/$1.tar" > /dev/null
}

docker info > /dev/null 2>&1 && exec "${command[@]}"
[ "$(id -u)" = 0 ] || without "none answers, and only root can start one"
type mmdebstrap ip > /dev/null 2>&1 || without "none answers, and mmdebstrap is not installed"
mkdir -p "$state/data" "$state/client"
[ -e "$state/root/usr" ] || [ "$(df --output=avail -BG "$state" | tail -n 1 | tr -dc 0-9)" -ge 15 ] || without "images need 15 GB of disk"
make_archives || without "Debian's packages cannot be had"
[ -e "$state/root/usr" ] || { mkdir "$state/root" && tar --extract --file "$state/daemon.tar" --directory "$state/root"; }

run=$(mktemp --directory)
chmod 755 "$run"
export -f start_daemon
unshare --mount --propagation private bash -c 'start_daemon "$@"' daemon "$PWD" "$state" "$run" > "$state/daemon.log" 2>&1 &
daemon=$!
finish() {
    kill $daemon 2> /dev/null && wait $daemon || true
    ip link delete docker0 2> /dev/null || true
    rm -rf "$run"
}
trap finish EXIT

# The client of the tree, with its plug-ins.
printf '{"cliPluginsExtraDirs": ["%s"]}' "$state/root/usr/libexec/docker/cli-plugins" > "$state/client/config.json"
ln -sf "$state/root/usr/bin/docker" "$state/client/docker"
export PATH=$state/client:$PATH DOCKER_CONFIG=$state/client DOCKER_HOST=unix://$run/docker.sock
for _ in $(seq 60); do
    docker info > /dev/null 2>&1 && break
    kill -0 $daemon 2> /dev/null || break
    sleep 0.5
done
if docker info > /dev/null 2>&1; then
    told=()
    while IFS= read -r line; do told+=(--change "ENV $line"); done < <(env | grep -E '^PIP_(FIND_LINKS|CERT|INDEX_URL|EXTRA_INDEX_URL)=' || true)
    import slim ttgpt-base/python:slim
    import build ttgpt-base/python:build "${told[@]}"
    import services ttgpt-base/redis
    import services ttgpt-base/prometheus --change 'ENTRYPOINT ["prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]'
    export PYTHON_IMAGE=ttgpt-base/python:slim BUILD_IMAGE=ttgpt-base/python:build BUSYBOX_IMAGE=ttgpt-base/python:slim
    export REDIS_IMAGE=ttgpt-base/redis PROMETHEUS_IMAGE=ttgpt-base/prometheus TORCH_INDEX=${PIP_INDEX_URL:-https://pypi.org/simple}
else
    echo "No Docker daemon: $(grep -m1 -iE 'failed|error' "$state/daemon.log" || tail -n 1 "$state/daemon.log")" >&2
fi
"${command[@]}"
