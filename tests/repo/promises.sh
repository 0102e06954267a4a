#!/usr/bin/env bash
# Every test that a document names as `path/file.rs::function` is a test, every row of a table with a
# column "held by" names one, and every link to a file leads to one.
set -euo pipefail
cd "$(dirname "$0")/../.."

failed=0
complain() { echo "$*" >&2; failed=1; }

# is_test FILE FUNCTION: whether #[test], at most four lines of attributes and comments before it, makes it one.
is_test() {
    awk -v name="fn $2(" '
        /^[[:space:]]*#\[test\]/ { last = NR }
        index($0, name) && last && NR - last <= 4 { found = 1 }
        END { exit !found }' "$1"
}

count=0
for document in SPECIFICATION.md README.md CONTRIBUTING.md docs/*.md docs/adr/*.md; do
    while read -r named; do
        file=${named%%::*} function=${named##*::}
        if [ ! -f "$file" ]; then
            complain "$document names $named: there is no such file"
        elif ! is_test "$file" "$function"; then
            complain "$document names $named: there is no such test"
        fi
        count=$((count + 1))
    done < <(grep -oE '`[A-Za-z0-9_/.-]+\.rs::[A-Za-z0-9_]+`' "$document" | tr -d '`' | sort -u)
    while read -r row; do
        complain "$document: no test is named for: $row"
    done < <(awk '
        !/^\|/ { promises = 0; next }
        /\| held by/ { promises = 1; next }
        promises && !/^\|[-|: ]*$/ && !/\.rs::/ { print substr($0, 1, 100) }' "$document")
done
while read -r document; do
    while read -r link; do
        [ -e "$(dirname "$document")/$link" ] || complain "$document links to $link, which is not there"
    done < <(grep -oE '\]\([^)#: ]+[)#]' "$document" | sed 's/^](//; s/.$//')
done < <(find . -name '*.md' -not -path './target*')
[ "$count" -gt 0 ] || complain "no document names a test"
exit $failed
