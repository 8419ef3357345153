#!/bin/sh
# Makes a throw-away certificate authority and what it signs, for trials and for the compose file:
#   certificates.sh DIRECTORY NAME…     each NAME as DNS:localhost or IP:127.0.0.1
# ca.pem, server.pem and server.key (for these names), client.pem and client.key. The key of the authority is not kept, so
# nothing else can be signed with it. Everything is valid for ten years. If the files exist, nothing is changed.
# OWNER: the number of the user that reads the key of the server, if root runs this.
set -eu
dir=$1
shift
if [ -e "$dir/server.key" ]; then exit 0; fi

umask 077
mkdir -p "$dir"
# What an earlier run left that was killed: it may have the key of an authority.
rm -rf "$dir"/making.*
work=$(mktemp -d "$dir/making.XXXXXX")
trap 'rm -rf "$work"' EXIT
# A signal ends this script by the line above, so that the key of the authority is removed.
trap 'exit 1' HUP INT TERM
days=3650

# new_key NAME ARGUMENTS…: a private key, and a request or a certificate that it signs.
new_key() {
  key=$work/$1.key
  shift
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$key" "$@" 2> "$work/log" ||
    { cat "$work/log" >&2; exit 1; }
}

# sign NAME PURPOSE [NAMES]: a certificate of the authority.
sign() {
  new_key "$1" -subj "/CN=$1" -out "$work/$1.csr"
  {
    echo "basicConstraints=critical,CA:FALSE"
    echo "extendedKeyUsage=$2"
    echo "subjectAltName=$3"
  } > "$work/$1.ext"
  openssl x509 -req -in "$work/$1.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" -CAcreateserial \
    -days "$days" -extfile "$work/$1.ext" -out "$work/$1.pem" 2> "$work/log" || { cat "$work/log" >&2; exit 1; }
}

names=$1
shift
for name in "$@"; do names=$names,$name; done
new_key ca -x509 -days "$days" -subj "/CN=throw-away authority" -out "$work/ca.pem"
sign server serverAuth "$names"
sign client clientAuth DNS:client
chmod 644 "$work/ca.pem" "$work/server.pem" "$work/client.pem"
if [ -n "${OWNER:-}" ] && [ "$(id -u)" -eq 0 ]; then chown "$OWNER" "$work/server.key"; fi
# The directory has no secret but the keys, which only their owners read.
chmod 755 "$dir"
# The key of the server is moved last: if it exists, the others exist.
for file in ca.pem client.pem client.key server.pem server.key; do mv "$work/$file" "$dir/$file"; done
