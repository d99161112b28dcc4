#!/usr/bin/env bash
# torchao for the engine tests, in a folder of its own: transformers imports it wherever it's installed.
#
#   tools/engines/torchao.sh [FOLDER]     FOLDER: where it goes (default: $FFN_FUSION_TORCHAO, else .engines/torchao)
set -euo pipefail

VERSION=0.18.0
repo=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-${FFN_FUSION_TORCHAO:-$repo/.engines/torchao}}
test -d "$folder/torchao-$VERSION.dist-info" \
  || "${PYTHON:-python3}" -m pip --disable-pip-version-check --quiet install --no-deps --target "$folder" "torchao==$VERSION"
echo "done: export FFN_FUSION_TORCHAO=$folder"
