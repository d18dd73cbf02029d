#include "halfv-encoder-cache.h"

#include <algorithm>
#include <fstream>
#include <system_error>

namespace halfv::server {

namespace fs = std::filesystem;

static constexpr char   MAGIC[8]  = { 'h', 'a', 'l', 'f', 'v', 'e', 'm', '1' };
static constexpr size_t HEAD      = sizeof(MAGIC) + 2*sizeof(uint64_t); // and how many floats, and their sum
static const char *     SUFFIX    = ".embd";

// tells a file that was cut or changed by accident from a whole one
static uint64_t sum_of(const float * values, size_t n) {
    uint64_t sum = 0xcbf29ce484222325ull;
    const auto * bytes = reinterpret_cast<const unsigned char *>(values);
    for (size_t i = 0; i < n*sizeof(float); ++i) {
        sum = (sum ^ bytes[i])*0x100000001b3ull;
    }
    return sum;
}

encoder_cache::encoder_cache(uint64_t most_bytes, fs::path folder, uint64_t most_disk_bytes) :
    most(most_bytes), most_disk(most_disk_bytes), folder(std::move(folder)) {}

uint64_t encoder_cache::bytes() const {
    std::lock_guard<std::mutex> lock(mutex);
    return held;
}

encoder_cache::entry encoder_cache::find(const std::string & name, size_t n) {
    std::lock_guard<std::mutex> lock(mutex);
    const auto at = places.find(name);
    if (at != places.end()) {
        items.splice(items.begin(), items, at->second);
        const entry found = at->second->second;
        return found->size() == n ? found : nullptr;
    }
    entry found = read(name, n);
    if (found) {
        keep(name, found);
    }
    return found;
}

bool encoder_cache::has(const std::string & name, size_t n) const {
    std::lock_guard<std::mutex> lock(mutex);
    const auto at = places.find(name);
    return at != places.end() ? at->second->second->size() == n : read(name, n) != nullptr;
}

void encoder_cache::add(const std::string & name, const float * values, size_t n) {
    std::lock_guard<std::mutex> lock(mutex);
    if (places.count(name) || (n*sizeof(float) > most && folder.empty())) {
        return;
    }
    auto made = std::make_shared<std::vector<float>>(values, values + n);
    write(name, *made);
    keep(name, std::move(made));
}

void encoder_cache::keep(const std::string & name, entry values) {
    const uint64_t size = values->size()*sizeof(float);
    if (size > most) {
        return;
    }
    items.emplace_front(name, std::move(values));
    places[name] = items.begin();
    held += size;
    while (held > most) {
        held -= items.back().second->size()*sizeof(float);
        places.erase(items.back().first);
        items.pop_back();
    }
}

//
// on disk: whatever goes wrong there, the picture is encoded again
//

fs::path encoder_cache::path_of(const std::string & name) const {
    std::string safe = name;
    std::replace_if(safe.begin(), safe.end(), [](unsigned char c) { return !std::isalnum(c) && c != '-'; }, '_');
    return folder / (safe + SUFFIX);
}

encoder_cache::entry encoder_cache::read(const std::string & name, size_t n) const {
    if (folder.empty()) {
        return nullptr;
    }
    const fs::path path = path_of(name);
    std::error_code failed;
    if (fs::file_size(path, failed) != HEAD + n*sizeof(float) || failed) {
        return nullptr;
    }
    std::ifstream in(path, std::ios::binary);
    char magic[sizeof(MAGIC)];
    uint64_t head[2];
    auto res = std::make_shared<std::vector<float>>(n);
    in.read(magic, sizeof(magic)).read(reinterpret_cast<char *>(head), sizeof(head));
    in.read(reinterpret_cast<char *>(res->data()), n*sizeof(float));
    if (!in || !std::equal(magic, magic + sizeof(magic), MAGIC) || head[0] != n || head[1] != sum_of(res->data(), n)) {
        return nullptr;
    }
    fs::last_write_time(path, fs::file_time_type::clock::now(), failed); // the last used stay
    return res;
}

void encoder_cache::write(const std::string & name, const std::vector<float> & values) {
    if (folder.empty() || values.size()*sizeof(float) > most_disk) {
        return;
    }
    std::error_code failed;
    fs::create_directories(folder, failed);
    const fs::path path = path_of(name), partial = fs::path(path).concat(".partial");
    {
        const uint64_t head[2] = { values.size(), sum_of(values.data(), values.size()) };
        std::ofstream out(partial, std::ios::binary | std::ios::trunc);
        out.write(MAGIC, sizeof(MAGIC)).write(reinterpret_cast<const char *>(head), sizeof(head));
        out.write(reinterpret_cast<const char *>(values.data()), values.size()*sizeof(float)).flush();
        if (!out) {
            out.close();
            fs::remove(partial, failed);
            return;
        }
    }
    fs::rename(partial, path, failed);

    struct file { fs::file_time_type used; uint64_t size; fs::path path; };
    std::vector<file> files;
    uint64_t sum = 0;
    for (fs::directory_iterator it(folder, failed), end; !failed && it != end; it.increment(failed)) {
        std::error_code gone;
        if (it->path().extension() == SUFFIX && it->is_regular_file(gone)) {
            const file f = { it->last_write_time(gone), it->file_size(gone), it->path() };
            if (!gone) {
                files.push_back(f);
                sum += f.size;
            }
        }
    }
    std::sort(files.begin(), files.end(), [](const file & a, const file & b) { return a.used < b.used; });
    for (size_t i = 0; i < files.size() && sum > most_disk; ++i) {
        fs::remove(files[i].path, failed);
        sum -= files[i].size;
    }
}

} // namespace halfv::server
