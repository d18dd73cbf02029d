#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace halfv::server {

// Which addresses media may be fetched from, how much, and how long that may take.
struct fetch_rules {
    std::vector<std::string> hosts; // names, "*" for all public ones; a private address only where it is listed itself
    int64_t most_bytes = 0;
    int64_t most_sec   = 0;

    static fetch_rules from_environment();
};

std::string url_scheme(const std::string & text); // http, https, file; "" for anything else

// An address that is not of the public internet, or not an address.
bool is_private(const std::string & address);

std::vector<uint8_t> fetch(const std::string & url, const fetch_rules & rules); // throws std::invalid_argument

} // namespace halfv::server
