#!/usr/bin/env bash
# image.sh [DIRECTORY]: builds the container image, by default in target/image, without a container engine:
#   oci/               an OCI image layout: `podman run oci:DIRECTORY/oci`, `skopeo copy oci:…`
#   rootfs.tar.gz      its one layer, from which deploy/Containerfile makes the same image
#   podvisor.cdx.json  what the binary is made of, in CycloneDX
#   SHA256SUMS         of them
# The same binary gives the same bytes. Ends with an error if the image is larger than it may be.
set -euo pipefail
umask 022
cd "$(dirname "$0")/.."

out=${1:-target/image}
podvisor=${PODVISOR:-target/podvisor}
target=${TARGET:-$(examples/target.sh)}
max=$((15 << 20))
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
case $target in
x86_64-*) arch=amd64 ;;
aarch64-*) arch=arm64 ;;
*) echo "no image for $target" >&2; exit 1 ;;
esac

rm -rf "$out"
mkdir -p "$out/oci/blobs/sha256"
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT

# What KubeVirt looks for (docs/kubevirt.md). Names are hard links, so that each is a program wherever only one
# file of the image is mounted; /var/run leads to /run by a relative link, since virt-handler looks from outside.
chmod 755 "$root"
mkdir -p "$root"/{dev,etc,proc,run/podvisor,sys,tmp,usr/bin,usr/share/doc/podvisor,var}
# Where machines listen for `podvisor ctl`, whoever the container's user is.
chmod 1777 "$root/tmp" "$root/run/podvisor"
ln -s ../run "$root/var/run"
ln -s usr/bin "$root/bin"
install -m 755 "$podvisor" "$root/usr/bin/podvisor"
for name in virt-launcher-monitor virt-launcher virt-tail virt-probe virt-freezer container-disk cp sh bash; do
    ln "$root/usr/bin/podvisor" "$root/usr/bin/$name"
done
install -m 644 LICENSE "$root/usr/share/doc/podvisor/"
cat >"$root/etc/passwd" <<'PASSWD'
root:x:0:0:root:/:/bin/sh
qemu:x:107:107:machines:/:/bin/sh
PASSWD
cat >"$root/etc/group" <<'GROUP'
root:x:0:
qemu:x:107:
GROUP

sum() { sha256sum "$1" | cut -d ' ' -f 1; }

# blob FILE: moves it to where its digest says; prints digest and size.
blob() {
    local digest size
    digest=$(sum "$1") size=$(stat -c %s "$1")
    mv "$1" "$out/oci/blobs/sha256/$digest"
    echo "\"digest\":\"sha256:$digest\",\"size\":$size"
}

tar -C "$root" --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$out/layer" .
layer=$(sum "$out/layer") unpacked=$(stat -c %s "$out/layer")
gzip -9n <"$out/layer" >"$out/rootfs.tar.gz"
rm "$out/layer"
cp "$out/rootfs.tar.gz" "$out/blob"
layer_blob=$(blob "$out/blob")

labels="{\"org.opencontainers.image.title\":\"podvisor\",\"org.opencontainers.image.version\":\"$version\",\
\"org.opencontainers.image.licenses\":\"Apache-2.0\"}"
cat >"$out/blob" <<CONFIG
{"architecture":"$arch","os":"linux","config":{"User":"107:107","Entrypoint":["/usr/bin/podvisor"],\
"Env":["PATH=/usr/bin:/bin"],"Labels":$labels},\
"rootfs":{"type":"layers","diff_ids":["sha256:$layer"]},\
"history":[{"created_by":"deploy/image.sh"}]}
CONFIG
config_blob=$(blob "$out/blob")
oci=application/vnd.oci.image
cat >"$out/blob" <<MANIFEST
{"schemaVersion":2,"mediaType":"$oci.manifest.v1+json",\
"config":{"mediaType":"$oci.config.v1+json",$config_blob},\
"layers":[{"mediaType":"$oci.layer.v1.tar+gzip",$layer_blob}]}
MANIFEST
manifest_blob=$(blob "$out/blob")
cat >"$out/oci/index.json" <<INDEX
{"schemaVersion":2,"mediaType":"$oci.index.v1+json",\
"manifests":[{"mediaType":"$oci.manifest.v1+json",$manifest_blob,\
"platform":{"architecture":"$arch","os":"linux"}}]}
INDEX
echo '{"imageLayoutVersion":"1.0.0"}' >"$out/oci/oci-layout"

# crates: NAME VERSION LICENCE of each that is linked in, but for our own.
crates() {
    cargo tree -p podvisor --locked --target "$target" --edges normal,no-proc-macro --prefix none --no-dedupe \
        --format '{p}|{l}' | sed -n 's/^\([^ ]*\) v\([^ |]*\)|/\1 \2 /p' | sort -u
}

{
    cat <<HEAD
{
  "bomFormat": "CycloneDX",
  "specVersion": "1.5",
  "version": 1,
  "metadata": {
    "component": {
      "type": "application", "bom-ref": "podvisor", "name": "podvisor", "version": "$version",
      "licenses": [{"license": {"id": "Apache-2.0"}}],
      "hashes": [{"alg": "SHA-256", "content": "$(sum "$podvisor")"}]
    }
  },
  "components": [
HEAD
    awk '
        NR == FNR { if (/^name/) name = $3; if (/^version/) version = $3
                    if (/^checksum/) sums[name version] = $3; next }
        { licence = $3; for (i = 4; i <= NF; i++) licence = licence " " $i
          gsub(/ ?\/ ?/, " OR ", licence)
          url = "pkg:cargo/" $1 "@" $2; gsub(/\+/, "%2B", url)
          printf "    {\"type\": \"library\", \"bom-ref\": \"%s\", \"name\": \"%s\", \"version\": \"%s\", \"purl\": \"%s\", ", url, $1, $2, url
          printf "\"licenses\": [{\"expression\": \"%s\"}], ", licence
          printf "\"hashes\": [{\"alg\": \"SHA-256\", \"content\": %s}]},\n", sums["\"" $1 "\"" "\"" $2 "\""]
        }' Cargo.lock <(crates)
    case $target in
    *-musl) echo '    {"type": "library", "bom-ref": "musl", "name": "musl", "licenses": [{"license": {"id": "MIT"}}]},' ;;
    esac
    rust=$(rustc -V | cut -d ' ' -f 2)
    cat <<TAIL
    {"type": "library", "bom-ref": "std", "name": "std", "version": "$rust", "licenses": [{"expression": "MIT OR Apache-2.0"}]}
  ]
}
TAIL
} >"$out/podvisor.cdx.json"

(cd "$out" && find . -type f -printf '%P\n' | sort | xargs sha256sum >"$root/SHA256SUMS")
mv "$root/SHA256SUMS" "$out/SHA256SUMS"

size=$(du -b --summarize "$out/oci" | cut -f 1)
echo "$out/oci: $size bytes, $unpacked unpacked"
[ "$unpacked" -le "$max" ] || { echo "the image has at most $max bytes unpacked" >&2; exit 1; }
