#!/usr/bin/env bash
# Licences, bans and sources of all dependencies against the lists of deny.toml: of the product and its tests, of the
# fuzzers, of the bare-metal guest. Advisories need cargo-deny and a copy of RustSec's database (in ADVISORY_DB, else
# where deny.toml says); where one is missing that is said, and they are not looked at.
set -euo pipefail
cd "$(dirname "$0")/../.."

# list NAME: the strings of deny.toml's list NAME.
list() { sed -n "/^$1 = \[/,/\]/p" deny.toml | sed "1s/^$1 = //" | grep -o '"[^"]*"' | tr -d '"'; }

# Crates that may have a licence besides, as `crate licence`.
exceptions() { sed -n 's/^ *{ crate = "\(.*\)", allow = \["\(.*\)"\] },$/\1 \2/p' deny.toml; }

failed=0
complain() { echo "deny.toml: $*" >&2; failed=1; }

# look DIRECTORY LEAST: a workspace, and how many dependencies it has at least.
look() {
    local tree refused crate foreign
    tree=$(cargo tree --manifest-path "$1/Cargo.toml" --workspace --locked --target all --edges normal,build,dev \
        --prefix none --no-dedupe --format '{l}|{p}' | sort -u)
    [ "$(wc -l <<<"$tree")" -ge "$2" ] || complain "cargo tree shows no dependencies of $1"

    # A licence expression holds if each of its parts joined by AND offers one that is allowed.
    refused=$(grep '^[^|]' <<<"$tree" | awk -F '|' '
        FILENAME == ARGV[1] { allowed[$0]; next }
        FILENAME == ARGV[2] { besides[$0]; next }
        { expression = $1; gsub(/[()]/, "", expression); gsub(/ ?\/ ?/, " OR ", expression)
          crate = $2; sub(/ .*/, "", crate)
          parts = split(expression, part, " AND "); good = parts > 0
          for (i = 1; i <= parts; i++) {
              choices = split(part[i], choice, " OR "); any = 0
              for (j = 1; j <= choices; j++) if (choice[j] in allowed || crate " " choice[j] in besides) any = 1
              if (!any) good = 0
          }
          if (!good) print $2 " has licence \"" $1 "\"" }' <(list allow) <(exceptions) -)
    [ -z "$refused" ] || complain "$refused"

    for crate in $(list deny); do
        ! grep -q "|$crate v" <<<"$tree" || complain "$crate is banned"
    done

    foreign=$(sed -n 's/^source = "\(.*\)"/\1/p' "$1/Cargo.lock" | sort -u | sed 's/^registry+//' |
        grep -vxFf <(list allow-registry) || true)
    [ -z "$foreign" ] || complain "source $foreign"
}

look . 100
look tests/fuzz/libfuzzer 100
look tests/payload 1

db=${ADVISORY_DB:-$(sed -n 's/^db-path = "\(.*\)"/\1/p' deny.toml)}
if [ -d "$db" ] && command -v cargo-deny > /dev/null; then
    config=$(mktemp)
    trap 'rm -f "$config"' EXIT
    sed "s|^db-path = .*|db-path = \"$(realpath "$db")\"|" deny.toml > "$config"
    for directory in . tests/fuzz/libfuzzer tests/payload; do
        cargo deny --offline --locked --manifest-path "$directory/Cargo.toml" --config "$config" check advisories ||
            complain "there are advisories for $directory"
    done
else
    echo "Advisories are not looked at: that takes cargo-deny and RustSec's database in $db."
fi

exit $failed
