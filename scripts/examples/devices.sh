#!/usr/bin/env bash
# One phone, two people; signing out everywhere is one call: devices.sh HOST:PORT API_KEY
set -euo pipefail
target=$1 key=$2
call() { grpcurl -plaintext -H "authorization: Bearer $key" -d "$2" "$target" "onefold.v1.$1"; }

for person in one two; do
  call DevicesService/RegisterDevice "{\"identifiers\": {\"email\": \"$person@example.com\"}, \"device\": {\"token\": \"phone-1\", \"platform\": \"PLATFORM_APNS\", \"applicationName\": \"Pizza\"}}" >/dev/null
done
call DevicesService/DisableDevice '{"token": "phone-1"}' >/dev/null
# A field that is false is left out unless it is asked for.
grpcurl -plaintext -emit-defaults -H "authorization: Bearer $key" -d '{"token": "phone-1"}' "$target" \
  onefold.v1.DevicesService/ListTokenHolders | grep '"endpointEnabled"'
