#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

// What is done before the language model: rows of a picture that are alike are averaged, and some of them go on, after the
// encoder and its projector. It looks at the picture alone, so that whatever is asked of it later sees the same. Nothing of mtmd.
namespace halfv {

// What a choice may look at. Places in the grid and the encoder's attention join here with the first selector that wants them.
struct encoded_picture {
    const float * rows;  // one after the other
    int32_t n;
    int32_t stride;      // floats of a row
    int32_t width;       // of them enter the first layer; the others are DeepStack's
};

// The rows of one picture, or of one tile of it.
struct picture_rows {
    int32_t n      = 0; // that the encoder gives
    int32_t n_kept = 0; // that go on: known before it runs
    std::vector<int32_t> structure; // no patches, but where a line or the picture begins or ends: these go on
    std::vector<int32_t> kept;      // ascending; empty until the picture has been encoded
    int32_t n_merged = 0; // of those that are no structure, left when they are averaged; 0, or all: none are

    int32_t at(int32_t i) const { return i < (int32_t) kept.size() ? kept[i] : i; } // the row that became the i-th
    bool valid() const; // of one from a file
};

// A picture of n rows. Those that are not structure are averaged until a share of them is left, and a share of these goes on.
// n_kept = n: all of them, as the picture is small or the share of so few is everything.
picture_rows plan_rows(int32_t n, std::vector<int32_t> structure, float keep, uint32_t min_visual_tokens, float merge = 1.0f);

// What is added to a picture's id, so that caches do not take it for the whole one.
std::string id_suffix(const char * what, std::initializer_list<float> values);
std::string rows_suffix(float keep, float merge);

// The first selector: farthest-point coverage of the rows by cosine. It begins with the last row that may be left out, which
// stays so, and the text after the picture follows on a position that is taken. As many as the plan says, ascending.
std::vector<int32_t> choose_rows(const encoded_picture & picture, const picture_rows & plan, int32_t n_threads);

// AIM's merging. Every second row, counted back from the last, looks for the most similar (by cosine) of the others; as many as
// have to go, the most similar first, are averaged into those they have found, each the plain mean of itself and who joined.
// Again until n_left of `open` are left, which come back ascending: each stands where it stood. The last always stays.
std::vector<int32_t> merge_rows(float * rows, int32_t stride, int32_t width, std::vector<int32_t> open, int32_t n_left, int32_t n_threads);

struct rows_of_batch {
    int32_t        n;
    picture_rows * plan; // null: all go on
};

// Averages and chooses for each of some pictures, whose rows follow each other, and leaves only what goes on.
void keep_rows(std::vector<float> & rows, int32_t stride, int32_t width, const std::vector<rows_of_batch> & pictures, int32_t n_threads);

} // namespace halfv
