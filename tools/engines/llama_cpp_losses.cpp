// What llama.cpp says of a text's tokens, through its public C interface alone; its own llama-perplexity cuts texts by
// itself and scores half of every window.
//
//   llama-losses MODEL WINDOW     ids on stdin   -> -log p of every id but a window's first, windows of WINDOW ids
//
// Ids are decimal, apart by white space. One thread. What llama.cpp says goes to stderr.

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
    std::cerr << "llama-losses: " << what << "\n";
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

// Runs ids from the first position on; logits of all of them.
static void decode(llama_context * context, const std::vector<llama_token> & ids) {
    llama_batch batch = llama_batch_init((int32_t) ids.size(), 0, 1);
    batch.n_tokens = (int32_t) ids.size();
    for (size_t i = 0; i < ids.size(); i++) {
        batch.token[i] = ids[i];
        batch.pos[i] = (llama_pos) i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = true;
    }
    if (llama_decode(context, batch) != 0) {
        fail("decode");
    }
    llama_batch_free(batch);
}

static void losses(llama_model * model, size_t vocabulary, size_t window) {
    const std::vector<llama_token> ids = read_ids();
    llama_context * context = new_context(model, window);
    for (size_t start = 0; start + window <= ids.size(); start += window) {
        llama_memory_clear(llama_get_memory(context), true);
        decode(context, {ids.begin() + start, ids.begin() + start + window});
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
    const size_t window = argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 0;
    llama_backend_init();
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    llama_model * model = window > 1 ? llama_model_load_from_file(argv[1], params) : nullptr;
    if (model == nullptr) {
        fail("usage: llama-losses MODEL WINDOW, or the model didn't load");
    }
    losses(model, (size_t) llama_vocab_n_tokens(llama_model_get_vocab(model)), window);
    return 0;
}
