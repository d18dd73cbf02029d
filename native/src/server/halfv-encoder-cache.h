#pragma once

#include <cstdint>
#include <filesystem>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace halfv::server {

// Embeddings by name, the last used ones within a budget of bytes; in a folder too, if there is one.
class encoder_cache {
public:
    using entry = std::shared_ptr<std::vector<float>>;

    encoder_cache(uint64_t most_bytes, std::filesystem::path folder, uint64_t most_disk_bytes);

    // null, or an entry of exactly n floats
    entry find(const std::string & name, size_t n);
    bool  has (const std::string & name, size_t n) const;
    void  add (const std::string & name, const float * values, size_t n);

    uint64_t bytes() const;

private:
    using item = std::pair<std::string, entry>;

    void keep(const std::string & name, entry values);
    entry read(const std::string & name, size_t n) const;
    void write(const std::string & name, const std::vector<float> & values);
    std::filesystem::path path_of(const std::string & name) const;

    const uint64_t most, most_disk;
    const std::filesystem::path folder; // empty: none
    mutable std::mutex mutex;
    std::list<item> items; // the last used first
    std::unordered_map<std::string, std::list<item>::iterator> places;
    uint64_t held = 0;
};

} // namespace halfv::server
