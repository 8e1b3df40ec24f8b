#!/usr/bin/env bash
# Does watching every table change what a writer gets? PostgreSQL's and Django's own tests, without unstale and with it:
# `./dev wild [postgres|django] [row|statement|log ...]`.
#
# Each suite runs once on a server without unstale, and once for each delivery on a server where event triggers watch every table as it is
# made (wild/watch.sql), while a listener runs where the suite bears one. What the suites print is compared with what they printed
# without unstale: not with what they expect. A difference that wild/allowed.txt does not explain fails the command.
#
# Owns: sources that are fetched (Debian, PyPI), kept in a directory of its own below /var/tmp, and throw-away servers on Unix sockets in
# another that is gone at the end. Must hold: nothing else of the machine is touched; only processes started here are ended.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly root=$PWD
cache=/var/tmp/unstale-wild-$(id -u)
readonly results=$cache/results
readonly unstale=${CARGO_TARGET_DIR:-$root/target}/debug/unstale
# Words before each command that takes minutes, as in `nice -n 10`.
read -r -a gently <<< "${WILD_UNDER:-}" || true

say() { printf 'wild: %s\n' "$*" >&2; }
die() { say "$@"; exit 2; }
# Runs a command, silently unless it fails.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" > "$log" 2>&1; then cat "$log" >&2; rm "$log"; return 1; fi
    rm "$log"
}

# --- What runs the servers: PostgreSQL refuses root. ---

server_user=
if [ "$(id -u)" = 0 ]; then
    if id postgres > /dev/null 2>&1; then server_user=postgres; else server_user=nobody; fi
fi
as_server() { if [ -n "$server_user" ]; then runuser -u "$server_user" -- "$@"; else "$@"; fi; }
give() { if [ -n "$server_user" ]; then chown -R "$server_user" "$@"; fi; }

programs=${PG_BIN_DIR:-$(find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2> /dev/null | sort -V | tail -n 1)}
[ -x "$programs/initdb" ] || die "no PostgreSQL in '$programs'; PG_BIN_DIR names another directory"
version=$("$programs/postgres" --version | grep -oE '[0-9]+(\.[0-9]+)?' | head -n 1)
major=${version%%.*}

memory=/dev/shm
[ -d $memory ] && [ "$(df --output=avail -k $memory | tail -n 1)" -gt 4000000 ] || memory=/tmp
scratch=$(mktemp -d "$memory/unstale-wild.XXXXXX")
chmod 755 "$scratch"
listener=
end_listener() {
    [ -z "$listener" ] || { kill "$listener" && wait "$listener"; } 2> /dev/null || true
    listener=
}
end_servers() {
    end_listener
    if [ -s "$scratch/redis.pid" ]; then kill "$(cat "$scratch/redis.pid")" 2> /dev/null || true; rm -f "$scratch/redis.pid"; fi
    if [ -s "$scratch/data/postmaster.pid" ]; then as_server "$programs/pg_ctl" stop -s -m immediate -D "$scratch/data" || true; fi
    rm -rf "$scratch/data"
}
trap 'end_servers; rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

# A server, which says in its log what became of each table. `start_server [SETTING=VALUE ...]`.
start_server() {
    local setting options=""
    end_servers
    give "$scratch"
    as_server "$programs/initdb" -D "$scratch/data" -U postgres -A trust -E UTF8 --locale=C -N > "$scratch/initdb.log"
    # Without autovacuum, because when it comes changes plans, and with them the order of rows.
    for setting in listen_addresses= "unix_socket_directories=$scratch" fsync=off full_page_writes=off autovacuum=off \
        shared_buffers=128MB max_wal_size=256MB wal_level=replica dynamic_shared_memory_type=mmap log_timezone=UTC "$@"; do
        options+=" -c '$setting'"
    done
    : > "$scratch/log"
    give "$scratch/log"
    as_server "$programs/pg_ctl" start -s -w -D "$scratch/data" -l "$scratch/log" -o "$options"
}

sql() { "$programs/psql" -X -q -At -v ON_ERROR_STOP=1 -h "$scratch" -U postgres "$@"; }
url() { echo "postgres://postgres@localhost/$1?host=$scratch&port=5432"; }

# Watches every table that is made from now on in a database, or in the copies of it.
watch_all() {
    DATABASE_URL=$(url "$1") quietly "$unstale" migrate
    quietly sql -d "$1" -v delivery="$2" -f tests/wild/watch.sql
}

start_listener() {
    local server=${REDIS_SERVER:-$(command -v redis-server || command -v valkey-server)}
    "$server" --port 0 --unixsocket "$scratch/redis.sock" --save '' --daemonize yes --pidfile "$scratch/redis.pid" --dir "$scratch" > /dev/null
    DATABASE_URL=$(url "$1") REDIS_URL=redis+unix://$scratch/redis.sock "$unstale" run > "$scratch/listener.log" 2>&1 &
    listener=$!
}

# --- PostgreSQL's own tests: of the source package of the server that is installed. ---

# The pieces of Debian's archive, by a configuration of apt that is ours alone.
apt_private() {
    local to=$cache/apt release list
    mkdir -p "$to/lists/partial" "$to/archives/partial"
    if [ ! -e "$to/sources.list" ]; then
        release=$(. /etc/os-release && echo "$VERSION_CODENAME")
        for list in "debian $release" "debian $release-updates" "debian-security $release-security"; do
            echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/$list main"
            echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/$list main"
        done > "$to/sources.list"
    fi
    apt-get -o "Dir::Etc::sourcelist=$to/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$to/lists" \
        -o "Dir::Cache=$to" -o APT::Sandbox::User=root "$@"
}

get_postgres() {
    local to=$cache/postgres-$version package
    if [ -e "$to/complete" ]; then return; fi
    package=$(dpkg-query -W -f '${Version}' "postgresql-$major")
    say "fetching the source of PostgreSQL $package (Debian)"
    rm -rf "$to" && mkdir -p "$to"
    quietly apt_private update
    (
        cd "$to"
        quietly apt_private source --download-only "postgresql-$major=$package"
        tar xjf ./*.orig.tar.bz2 --strip-components=1 --wildcards '*/src/test/regress' '*/src/test/isolation'
        # The headers, for the tests' functions in C.
        quietly apt_private download "postgresql-server-dev-$major=$package"
        dpkg-deb -x ./postgresql-server-dev-*.deb headers
        rm -rf ./*.tar.* ./*.deb ./*.dsc
        cd src/test/regress
        gcc -O1 -fPIC -shared -DDLSUFFIX='".so"' -I "$to/headers/usr/include/postgresql/$major/server" -I . -o regress.so regress.c
        # Beside it what a test loads from there, and is installed with the server.
        cp "$(dirname "$programs")"/lib/{refint,autoinc}.so .
    )
    chmod -R a+rX "$cache"
    touch "$to/complete"
}

# Some tests, of a schedule, on the server that runs. `regress OUTPUT SCHEDULE`.
regress() {
    as_server "${gently[@]}" "$(dirname "$programs")/lib/pgxs/src/test/regress/pg_regress" --use-existing --dbname=regression \
        --host="$scratch" --user=postgres --bindir="$programs" --dlpath="$tests" --inputdir="$tests" --outputdir="$1" --schedule="$2" \
        >> "$1/summary" 2>&1 || true
}

# One after the other, or plans and the order of rows would differ by chance.
run_postgres() {
    local delivery=$1 out=$results/postgres/$1 tests=$cache/postgres-$version/src/test/regress began=$SECONDS
    rm -rf "$out" && mkdir -p "$out"
    give "$out"
    grep -oE '^test:.*' "$tests/parallel_schedule" | tr ' ' '\n' | sed -e '/^test:$/d' -e '/^$/d' -e 's/^/test: /' > "$scratch/schedule"
    head -n 1 "$scratch/schedule" > "$scratch/schedule.first"
    tail -n +2 "$scratch/schedule" > "$scratch/schedule.rest"
    start_server
    sql -d postgres -c 'create database regression template template0'
    sql -d postgres -c "alter database regression set lc_messages to 'C'" -c "alter database regression set lc_monetary to 'C'" \
        -c "alter database regression set lc_numeric to 'C'" -c "alter database regression set lc_time to 'C'" \
        -c "alter database regression set bytea_output to 'hex'" -c "alter database regression set timezone_abbreviations to 'Default'"
    if [ "$delivery" != without ]; then
        watch_all regression "$delivery"
    fi
    # Plans of later tests depend on how much of a table the VACUUM of the first one finds visible to all: no listener reads meanwhile.
    regress "$out" "$scratch/schedule.first"
    [ "$delivery" = without ] || start_listener regression
    regress "$out" "$scratch/schedule.rest"
    end_listener
    cp "$scratch/log" "$out/server.log"
    say "    $((SECONDS - began)) s, $(grep -c '^test ' "$out/summary") tests, $(grep -c FAILED "$out/summary") not as PostgreSQL expects"
}

# --- Django's own tests: those that use a database. ---

get_django() {
    local to=$cache/django
    if [ -e "$to/complete" ]; then return; fi
    say "fetching Django and psycopg (PyPI)"
    rm -rf "$to" && mkdir -p "$to"
    python3 -m venv "$to/venv"
    quietly "$to/venv/bin/pip" download --disable-pip-version-check --no-deps --no-binary Django -d "$to" 'Django==5.2.*'
    tar xzf "$to"/[Dd]jango-*.tar.gz -C "$to"
    mv "$to"/[Dd]jango-*/ "$to/source"
    # In parallel it wants tblib to say what failed.
    quietly "$to/venv/bin/pip" install --disable-pip-version-check "$to/source" 'psycopg[binary,pool]' tblib
    touch "$to/complete"
}

# Those labels that runtests.py knows, on so many lines. Not `migrations`: it makes thousands of tables, which takes as long as half of all
# others, and hardly writes a row; `schema` changes tables, too.
django_pieces() {
    (cd "$cache/django/source/tests" && ls -d ./*/__init__.py) | cut -d/ -f2 | grep -vxE 'import_error_package|test_runner_apps|gis_tests|migrations' |
        awk -v pieces="$1" '{ word[NR] = $0 } END { for (i = 1; i <= NR; i++) printf "%s%s", word[i], int(i * pieces / NR) != int((i - 1) * pieces / NR) ? "\n" : " " }'
}

# In pieces, so that one sees it go on. Databases are made from template1, and so are watched. No listener: one that is connected would
# keep Django from copying and dropping them.
run_django() {
    local delivery=$1 out=$results/django/$1 began=$SECONDS source=$cache/django/source/tests piece name tests=0
    rm -rf "$out" && mkdir -p "$out"
    start_server max_locks_per_transaction=1024
    [ "$delivery" = without ] || watch_all template1 "$delivery"
    while read -r piece; do
        name=${piece%% *}-${piece##* }
        # shellcheck disable=SC2086  # labels are words
        (
            cd "$source"
            WILD_SOCKET=$scratch WILD_OUTCOMES=$out/$name.outcomes PYTHONPATH=$root/tests/wild PYTHONDONTWRITEBYTECODE=1 \
                "${gently[@]}" "$cache/django/venv/bin/python" runtests.py --settings=django_settings --noinput --parallel=2 $piece \
                > "$out/$name.log" 2>&1 < /dev/null
        ) || true
        tests=$((tests + $(wc -l < "$out/$name.outcomes")))
        say "    $((SECONDS - began)) s, $tests tests: $name"
    done < <(django_pieces 8)
    cp "$scratch/log" "$out/server.log"
}

get() { case $1 in postgres) get_postgres ;; django) get_django ;; esac; }
run() { case $1 in postgres) run_postgres "$2" ;; django) run_django "$2" ;; esac; }

# Without unstale, and then with it: `suite NAME DELIVERY ...`.
suite() {
    local name=$1 delivery log
    shift
    get "$name"
    say "$name, without unstale"
    run "$name" without
    for delivery in "$@"; do
        say "$name, every table watched, delivery '$delivery'"
        run "$name" "$delivery"
        log=$results/$name/$delivery/server.log
        say "    tables were watched $(grep -c 'wild: watched' "$log") times, partitions with them $(grep -c 'wild: partition' "$log") times"
        grep -o 'wild: left out: .*' "$log" | sed -E 's/^wild: left out: [^:]*: //; s/ \(.*\)//; s/^\S+ (is|has|belongs) /\1 /' |
            sort | uniq -c | sort -rn | sed 's/^/wild:     left out: /' >&2 || true
        if ! python3 tests/wild/compare.py "$name" "$results/$name/without" "$results/$name/$delivery" > "$results/$name/$delivery/differences"; then
            cat "$results/$name/$delivery/differences"
            failed=1
        fi
        say "    $(tail -n 1 "$results/$name/$delivery/differences")"
    done
}

suites=() deliveries=() failed=0
for word in "$@"; do
    case $word in
        postgres | django) suites+=("$word") ;;
        row | statement | log) deliveries+=("$word") ;;
        *) die "there is no '$word': [postgres|django] [row|statement|log ...]" ;;
    esac
done
[ ${#suites[@]} != 0 ] || suites=(postgres django)
[ ${#deliveries[@]} != 0 ] || deliveries=(row statement log)
for name in "${suites[@]}"; do suite "$name" "${deliveries[@]}"; done
say "$SECONDS s in all; what was printed is in $results"
[ $failed = 0 ] || say "FAILED: see the differences above"
exit $failed
