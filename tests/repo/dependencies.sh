#!/usr/bin/env bash
# Licences, bans and sources of all dependencies against the lists of deny.toml. What cargo-deny does
# besides, advisories above all, needs cargo-deny.
set -euo pipefail
cd "$(dirname "$0")/../.."

# list NAME: the strings of deny.toml's list NAME.
list() { sed -n "/^$1 = \[/,/\]/p" deny.toml | sed "1s/^$1 = //" | grep -o '"[^"]*"' | tr -d '"'; }

failed=0
complain() { echo "deny.toml: $*" >&2; failed=1; }

tree=$(cargo tree --workspace --locked --target all --edges normal,build,dev --prefix none --no-dedupe \
    --format '{l}|{p}' | grep . | sort -u)
[ "$(wc -l <<<"$tree")" -gt 100 ] || complain "cargo tree shows no dependencies"

# A licence expression holds if each of its parts joined by AND offers one that is allowed.
refused=$(awk -F '|' '
    NR == FNR { allowed[$0]; next }
    { expression = $1; gsub(/[()]/, "", expression); gsub(/ ?\/ ?/, " OR ", expression)
      parts = split(expression, part, " AND "); good = parts > 0
      for (i = 1; i <= parts; i++) {
          choices = split(part[i], choice, " OR "); any = 0
          for (j = 1; j <= choices; j++) if (choice[j] in allowed) any = 1
          if (!any) good = 0
      }
      if (!good) print $2 " has licence \"" $1 "\"" }' <(list allow) - <<<"$tree")
[ -z "$refused" ] || complain "$refused"

for crate in $(list deny); do
    ! grep -q "|$crate v" <<<"$tree" || complain "$crate is banned"
done

foreign=$(sed -n 's/^source = "\(.*\)"/\1/p' Cargo.lock | sort -u | sed 's/^registry+//' |
    grep -vxFf <(list allow-registry) || true)
[ -z "$foreign" ] || complain "source $foreign"

exit $failed
