// Pictures that are made smaller: what a size loses, and which is chosen.

#include "check.h"
#include "halfv-shrink.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <utility>
#include <vector>

using halfv::picture;

static const int SIDE = 20;

static picture drawn(int width, int height, const std::function<int(int, int)> & level) {
    picture out = { {}, width, height };
    for (int y = 0; y < height; ++y) {
        for (int x = 0; x < width; ++x) { out.rgb.insert(out.rgb.end(), 3, (uint8_t) level(x, y)); }
    }
    return out;
}

static size_t tokens(int width, int height) {
    return (size_t) (width/SIDE)*(height/SIDE);
}

// by the definition, pixel by pixel and cell by cell
static float loss_of(const picture & whole, int width, int height) {
    const picture again = halfv::resized(halfv::resized(whole.view(), width, height).view(), whole.width, whole.height);
    float worst = 0.0f;
    for (int top = 0; top < whole.height; top += SIDE) {
        for (int left = 0; left < whole.width; left += SIDE) {
            int lost = 0;
            for (int y = top; y < std::min(top + SIDE, whole.height); ++y) {
                for (int x = left; x < std::min(left + SIDE, whole.width); ++x) {
                    int off = 0;
                    for (int c = 0; c < 3; ++c) {
                        const size_t at = 3*((size_t) y*whole.width + x) + c;
                        off = std::max(off, std::abs(whole.rgb[at] - again.rgb[at]));
                    }
                    lost += off > 32;
                }
            }
            worst = std::max(worst, (float) lost/(SIDE*SIDE));
        }
    }
    return worst;
}

static void test_sizes() {
    const auto slope = drawn(123, 77, [](int x, int y) { return x + y; });
    for (const auto [width, height] : { std::pair{ 60, 40 }, { 123, 77 }, { 200, 100 }, { 1, 1 } }) {
        const picture out = halfv::resized(slope.view(), width, height);
        CHECK(out.width == width && out.height == height && out.rgb.size() == (size_t) 3*width*height);
        for (int y = 3; y < height - 3; ++y) { // a slope stays one, but for the edges, where nothing is beyond
            for (int x = 3; x < width - 3; ++x) {
                const double expected = (x + 0.5)*123/width - 0.5 + (y + 0.5)*77/height - 0.5;
                CHECK(std::abs(out.rgb[3*((size_t) y*width + x)] - expected) < 1.01);
            }
        }
    }
    const auto same = halfv::resized(slope.view(), slope.width, slope.height);
    CHECK(same.rgb == slope.rgb);
}

static void test_loss() {
    srand(7);
    for (int n = 0; n < 30; ++n) {
        const int width = 30 + rand()%90, height = 30 + rand()%90, rough = 1 + rand()%12;
        std::vector<int> levels(1024);
        for (int & level : levels) { level = rand()%256; }
        const auto some = drawn(width, height, [&](int x, int y) { return levels[(x/rough*31 + y/rough)%1024]; });
        const int smaller = 20 + rand()%60;
        CHECK(halfv::worst_loss(some.view(), smaller, smaller, SIDE) == loss_of(some, smaller, smaller));
    }
}

static void test_choice() {
    const auto choose = [](const picture & of, float loss) { return halfv::smallest(of.view(), SIDE, loss, tokens); };

    // nothing to see: as small as it gets
    const auto blank = drawn(320, 240, [](int, int) { return 200; });
    const auto small = choose(blank, 0.01f);
    CHECK(small && small->width == 80 && small->height == 60);
    CHECK(std::all_of(small->rgb.begin(), small->rgb.end(), [](uint8_t level) { return level == 200; }));

    // lines of one pixel are lost in every smaller size
    CHECK(!choose(drawn(320, 240, [](int x, int) { return x%2*255; }), 0.1f));

    // one corner of them speaks for all
    const auto corner = [](int x, int y) { return x < 40 && y < 40 ? x%2*255 : 200; };
    CHECK(!choose(drawn(320, 240, corner), 0.1f));
    CHECK(choose(drawn(320, 240, corner), 1.0f));

    // more loss, no larger picture; each within its bound, and the next smaller one, where there is one, beyond it
    const auto discs = drawn(400, 400, [](int x, int y) { return (x%100 - 50)*(x%100 - 50) + (y%100 - 50)*(y%100 - 50) < 900 ? 20 : 240; });
    size_t last = tokens(400, 400);
    for (const float loss : { 0.02f, 0.05f, 0.1f, 0.2f, 0.4f }) {
        const auto chosen = choose(discs, loss);
        const size_t now = chosen ? tokens(chosen->width, chosen->height) : tokens(400, 400);
        CHECK(now <= last);
        CHECK(!chosen || loss_of(discs, chosen->width, chosen->height) <= loss);
        last = now;
    }
    CHECK(last < tokens(400, 400)/2);

    // larger than an encoder takes: what is lost is lost of what enters
    const auto capped = [](int width, int height) { return std::min<size_t>(tokens(width, height), 100); };
    const auto large = drawn(800, 800, [](int x, int) { return x/2%2*255; });
    const auto entering = halfv::smallest(large.view(), SIDE, 0.1f, capped);
    CHECK(entering && entering->width < 200); // in 200 x 200 pixels these lines are gray already

    // an encoder of one size, or none
    CHECK(!halfv::smallest(blank.view(), SIDE, 1.0f, [](int, int) { return (size_t) 576; }));
}

int main() {
    test_sizes();
    test_loss();
    test_choice();
    return n_failed == 0 ? 0 : 1;
}
