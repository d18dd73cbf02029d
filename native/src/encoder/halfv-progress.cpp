#include "halfv-progress.h"

#include "halfv-mtmd.h"

#include "ggml.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace halfv {

static thread_local struct {
    halfv_encode_callback callback  = nullptr;
    void *                user_data = nullptr;
    int64_t               every_us  = 0;
} watcher;

// of a node that is called "layer_out-3"; -1: of none
static int layer_of(const char * name) {
    const char * dash = strrchr(name, '-');
    if (!dash || !*(dash + 1) || strspn(dash + 1, "0123456789") != strlen(dash + 1)) {
        return -1;
    }
    return atoi(dash + 1);
}

encode_progress::encode_progress(ggml_backend_sched_t sched, ggml_cgraph * graph) {
    if (!watcher.callback) {
        return;
    }
    int layer = -1;
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        const int found = layer_of(node->name);
        if (found > layer) {
            ends.push_back(node);
            layer = found;
        } else if (found == layer && found >= 0) {
            ends.back() = node;
        }
    }
    if (ends.empty()) {
        return;
    }
    this->sched = sched;
    start = ggml_time_us();
    ggml_backend_sched_set_eval_callback(sched, [](ggml_tensor * node, bool ask, void * self) {
        return static_cast<encode_progress *>(self)->reached(node, ask);
    }, this);
}

encode_progress::~encode_progress() {
    if (!sched) {
        return;
    }
    ggml_backend_sched_set_eval_callback(sched, nullptr, nullptr);
    if (told && watcher.callback) {
        watcher.callback(1.0f, watcher.user_data);
    }
}

size_t encode_progress::following() const {
    const int64_t us_layer = std::max<int64_t>(1, (ggml_time_us() - start)/(next + 1));
    if (us_layer*(int64_t) ends.size() <= watcher.every_us) {
        return ends.size(); // the whole takes less than what is between two reports
    }
    return next + std::max<int64_t>(1, watcher.every_us/us_layer);
}

bool encode_progress::reached(const ggml_tensor * node, bool ask) {
    if (ask) {
        return next < ends.size() && node == ends[next];
    }
    const size_t done = next + 1;
    next = following();
    if (next < ends.size() && watcher.callback) {
        told = true;
        watcher.callback((float) done/ends.size(), watcher.user_data);
    }
    return true;
}

} // namespace halfv

void halfv_watch_encoding(halfv_encode_callback callback, void * user_data, float every_sec) {
    const bool valid = every_sec > 0.0f && every_sec < 1e6f;
    halfv::watcher = { callback, user_data, valid ? (int64_t) (every_sec*1e6f) : 0 };
}
