#pragma once

namespace halfv {

// Where backends are libraries of their own, the folder of libggml if they lie beside it: a package is found there, whatever
// program loads it from wherever. Otherwise nullptr, and llama.cpp searches the program's folder and the current one.
const char * backend_folder();

} // namespace halfv
