#include "halfv-fetch.h"

#include "halfv-settings.h"

#include "http.h" // brings cpp-httplib and the system's sockets

#ifndef _WIN32
#include <netdb.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstring>
#include <sstream>
#include <stdexcept>

namespace halfv::server {

static constexpr int64_t MOST_MB = 20, MOST_SEC = 10;
static constexpr int     MOST_REDIRECTS = 3;

static std::string lower(std::string text) {
    std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return (char) std::tolower(c); });
    return text;
}

fetch_rules fetch_rules::from_environment() {
    fetch_rules res;
    std::istringstream list(text_setting("HALFV_MEDIA_HOSTS"));
    for (std::string host; std::getline(list, host, ',');) {
        host.erase(std::remove(host.begin(), host.end(), ' '), host.end());
        if (!host.empty()) { res.hosts.push_back(lower(host)); }
    }
    res.most_bytes = number_setting("HALFV_MEDIA_MB", MOST_MB) << 20;
    res.most_sec   = number_setting("HALFV_MEDIA_SEC", MOST_SEC);
    return res;
}

std::string url_scheme(const std::string & text) {
    const std::string start = lower(text.substr(0, 8));
    for (const char * scheme : { "http", "https", "file" }) {
        if (start.rfind(std::string(scheme) + ":", 0) == 0) { return scheme; }
    }
    return "";
}

static bool is_private_v4(uint32_t a) {
    const auto in = [a](uint32_t net, int bits) { return a >> (32 - bits) == net >> (32 - bits); };
    return in(0x00000000, 8) || in(0x0a000000, 8) || in(0x64400000, 10) || in(0x7f000000, 8) || in(0xa9fe0000, 16) || in(0xac100000, 12) ||
           in(0xc0000000, 24) || in(0xc0000200, 24) || in(0xc0586300, 24) || in(0xc0a80000, 16) || in(0xc6120000, 15) || in(0xc6336400, 24) ||
           in(0xcb007100, 24) || in(0xe0000000, 3);
}

static uint32_t big_endian(const unsigned char * b) {
    return (uint32_t) b[0] << 24 | (uint32_t) b[1] << 16 | (uint32_t) b[2] << 8 | b[3];
}

bool is_private(const std::string & address) {
    unsigned char b[16];
    if (inet_pton(AF_INET, address.c_str(), b) == 1) {
        return is_private_v4(big_endian(b));
    }
    if (inet_pton(AF_INET6, address.c_str(), b) != 1) {
        return true;
    }
    static const unsigned char mapped[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff };
    static const unsigned char nat64[12]  = { 0, 0x64, 0xff, 0x9b };
    if (!memcmp(b, mapped, 12) || !memcmp(b, nat64, 12)) {
        return is_private_v4(big_endian(b + 12));
    }
    if (b[0] == 0x20 && b[1] == 0x02) { // 6to4
        return is_private_v4(big_endian(b + 2));
    }
    return (b[0] & 0xe0) != 0x20 || (b[0] == 0x20 && b[1] == 0x01 && b[2] < 2); // not global unicast; Teredo and its like
}

// The address to connect to: looked up once, so that what was checked is what is used.
static std::string address_of(const std::string & host, const fetch_rules & rules) {
    const auto listed = [&](const std::string & name) { return std::find(rules.hosts.begin(), rules.hosts.end(), name) != rules.hosts.end(); };
    if (!listed(lower(host)) && !listed("*")) {
        throw std::invalid_argument("pictures are not fetched from \"" + host + "\": " +
            (rules.hosts.empty() ? "this server fetches none; send the picture itself as a data: URI" : "the list of hosts does not have it") + " (HALFV_MEDIA_HOSTS)");
    }
    addrinfo hints = {}, * found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0 || !found) {
        throw std::invalid_argument("\"" + host + "\" has no address");
    }
    std::vector<std::string> addresses;
    for (const addrinfo * a = found; a; a = a->ai_next) {
        char text[64] = "";
        if (getnameinfo(a->ai_addr, a->ai_addrlen, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) == 0) { addresses.push_back(text); }
    }
    freeaddrinfo(found);
    for (const auto & address : addresses) {
        if (!is_private(address) || listed(address)) { return address; }
    }
    throw std::invalid_argument("pictures are not fetched from \"" + host + "\": its address is not a public one");
}

static std::vector<uint8_t> fetch(const std::string & url, const fetch_rules & rules, int64_t most_ms, std::string & next) {
    common_http_url parts;
    try {
        parts = common_http_parse_url(url);
    } catch (const std::exception & error) {
        throw std::invalid_argument("\"" + url.substr(0, 200) + "\" is not a URL that can be fetched: " + error.what());
    }
    if (parts.host.size() > 2 && parts.host.front() == '[' && parts.host.back() == ']') {
        parts.host = parts.host.substr(1, parts.host.size() - 2);
    }
#ifndef CPPHTTPLIB_OPENSSL_SUPPORT
    if (parts.scheme == "https") {
        throw std::invalid_argument("https is not part of this build (-DLLAMA_OPENSSL=ON): send the picture itself as a data: URI");
    }
#endif
    const std::string address = address_of(parts.host, rules);
    httplib::Client client(parts.scheme + "://" + common_http_format_host(parts.host) + ":" + std::to_string(parts.port));
    client.set_hostname_addr_map({ { parts.host, address } });
    client.set_follow_location(false);
    client.set_connection_timeout(std::chrono::milliseconds(most_ms));
    client.set_read_timeout(std::chrono::milliseconds(most_ms));
    client.set_max_timeout(std::chrono::milliseconds(most_ms));

    std::vector<uint8_t> data;
    int  status = 0;
    bool too_long = false;
    const auto on_head = [&](const httplib::Response & response) {
        status = response.status;
        next   = status >= 300 && status < 400 ? response.get_header_value("Location") : "";
        return next.empty();
    };
    const auto on_data = [&](const char * bytes, size_t n) {
        too_long = (int64_t) (data.size() + n) > rules.most_bytes;
        if (!too_long) { data.insert(data.end(), bytes, bytes + n); }
        return !too_long;
    };
    const auto result = client.Get(parts.path, {{ "User-Agent", "halfv" }}, on_head, on_data);
    if (!next.empty()) {
        return {};
    }
    if (too_long) {
        throw std::invalid_argument("what \"" + parts.host + "\" sends is larger than " + std::to_string(rules.most_bytes >> 20) + " MB (HALFV_MEDIA_MB)");
    }
    if (!result) {
        throw std::invalid_argument("\"" + parts.host + "\" cannot be asked: " + httplib::to_string(result.error()));
    }
    if (status != 200) {
        throw std::invalid_argument("\"" + parts.host + "\" answers " + std::to_string(status));
    }
    return data;
}

std::vector<uint8_t> fetch(const std::string & url, const fetch_rules & rules) {
    using clock = std::chrono::steady_clock;
    const auto end = clock::now() + std::chrono::seconds(rules.most_sec);
    std::string at = url;
    for (int i = 0; i <= MOST_REDIRECTS; ++i) {
        if (url_scheme(at) == "file") {
            throw std::invalid_argument("file: is never read by a server: send the picture itself as a data: URI");
        }
        const int64_t left = std::chrono::duration_cast<std::chrono::milliseconds>(end - clock::now()).count();
        if (left <= 0) {
            throw std::invalid_argument("fetching \"" + url.substr(0, 200) + "\" takes longer than " + std::to_string(rules.most_sec) + " s (HALFV_MEDIA_SEC)");
        }
        std::string next;
        auto data = fetch(at, rules, left, next);
        if (next.empty()) {
            return data;
        }
        if (next.front() == '/') {
            const size_t host = at.find("://") + 3;
            next = at.substr(0, at.find('/', host)) + next;
        }
        at = next;
    }
    throw std::invalid_argument("\"" + url.substr(0, 200) + "\" is redirected too often");
}

} // namespace halfv::server
