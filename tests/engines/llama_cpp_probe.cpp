// What the tests ask of llama.cpp, through its public C interface alone:
//
//   llama-probe tokens MODEL          texts on stdin, a zero byte behind each -> a line of token ids for each
//                                     (special tokens are found, none are added)
//   llama-probe logits MODEL          ids on stdin   -> float32 logits of every position, [ids, vocabulary]
//   llama-probe greedy MODEL COUNT    ids on stdin   -> the COUNT likeliest next ids, one after another, with the cache
//   llama-probe losses MODEL WINDOW   ids on stdin   -> -log p of every id but a window's first, windows of WINDOW ids
//
// Ids are decimal, apart by white space; logits are raw bytes. One thread. What llama.cpp says goes to stderr.

#include "llama.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

static void fail(const std::string & what) {
    std::cerr << "llama-probe: " << what << "\n";
    std::exit(1);
}

static std::vector<llama_token> read_ids() {
    return {std::istream_iterator<llama_token>(std::cin), std::istream_iterator<llama_token>()};
}

static llama_context * new_context(llama_model * model, size_t tokens) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = (uint32_t) tokens;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * context = llama_init_from_model(model, params);
    if (context == nullptr) {
        fail("no context");
    }
    return context;
}

// Runs ids at positions from `start` on; logits of all of them, or of the last alone.
static void decode(llama_context * context, const std::vector<llama_token> & ids, size_t start, bool all) {
    llama_batch batch = llama_batch_init((int32_t) ids.size(), 0, 1);
    batch.n_tokens = (int32_t) ids.size();
    for (size_t i = 0; i < ids.size(); i++) {
        batch.token[i] = ids[i];
        batch.pos[i] = (llama_pos) (start + i);
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = all || i + 1 == ids.size();
    }
    if (llama_decode(context, batch) != 0) {
        fail("decode");
    }
    llama_batch_free(batch);
}

static void tokens(const llama_vocab * vocab) {
    for (std::string text; std::getline(std::cin, text, '\0');) {
        std::vector<llama_token> ids(text.size() + 16);
        const int32_t room = (int32_t) ids.size();
        const int count = llama_tokenize(vocab, text.data(), (int32_t) text.size(), ids.data(), room, false, true);
        if (count < 0) {
            fail("tokenize");
        }
        for (int i = 0; i < count; i++) {
            std::cout << ids[i] << " ";
        }
        std::cout << "\n";
    }
}

static void logits(llama_model * model, size_t vocabulary) {
    const std::vector<llama_token> ids = read_ids();
    llama_context * context = new_context(model, ids.size());
    decode(context, ids, 0, true);
    for (size_t i = 0; i < ids.size(); i++) {
        const float * row = llama_get_logits_ith(context, (int32_t) i);
        if (std::fwrite(row, sizeof(float), vocabulary, stdout) != vocabulary) {
            fail("write");
        }
    }
}

static void greedy(llama_model * model, size_t vocabulary, size_t count) {
    std::vector<llama_token> ids = read_ids();
    llama_context * context = new_context(model, ids.size() + count);
    size_t position = 0;
    for (size_t i = 0; i < count; i++) {
        decode(context, ids, position, false);
        position += ids.size();
        const float * row = llama_get_logits_ith(context, -1);
        ids = {(llama_token) (std::max_element(row, row + vocabulary) - row)};
        std::cout << ids[0] << "\n";
    }
}

static void losses(llama_model * model, size_t vocabulary, size_t window) {
    const std::vector<llama_token> ids = read_ids();
    llama_context * context = new_context(model, window);
    for (size_t start = 0; start + window <= ids.size(); start += window) {
        llama_memory_clear(llama_get_memory(context), true);
        decode(context, {ids.begin() + start, ids.begin() + start + window}, 0, true);
        for (size_t i = 0; i + 1 < window; i++) {
            const float * row = llama_get_logits_ith(context, (int32_t) i);
            const double top = *std::max_element(row, row + vocabulary);
            double sum = 0;
            for (size_t v = 0; v < vocabulary; v++) {
                sum += std::exp(row[v] - top);
            }
            std::printf("%.9g\n", top + std::log(sum) - row[ids[start + i + 1]]);
        }
    }
}

int main(int argc, char ** argv) {
    const std::string mode = argc > 2 ? argv[1] : "";
    const size_t number = argc > 3 ? std::strtoul(argv[3], nullptr, 10) : 0;
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    params.vocab_only = mode == "tokens";
    params.n_gpu_layers = 0;
    llama_model * model = argc > 2 ? llama_model_load_from_file(argv[2], params) : nullptr;
    if (model == nullptr) {
        fail("usage: llama-probe tokens|logits|greedy|losses MODEL [COUNT|WINDOW], or the model didn't load");
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const size_t vocabulary = (size_t) llama_vocab_n_tokens(vocab);
    if (mode == "tokens") {
        tokens(vocab);
    } else if (mode == "logits") {
        logits(model, vocabulary);
    } else if (mode == "greedy") {
        greedy(model, vocabulary, number);
    } else if (mode == "losses" && number > 1) {
        losses(model, vocabulary, number);
    } else {
        fail("no such mode");
    }
    return 0;
}
