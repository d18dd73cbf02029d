# halfv_fetch_source(<out>): the path of the pristine llama.cpp tree, from HALFV_LLAMA_SOURCE, the cache, or pip.

set(HALFV_UNPACK
    CMakeLists.txt LICENSE convert_hf_to_gguf.py docs/ops/*.csv
    app cmake common conversion examples ggml gguf-py grammars include licenses models pocs scripts src tests tools vendor)

# as halfv_edge/files.py has it
function(halfv_cache_dir out)
    if (HALFV_CACHE)
        set(dir "${HALFV_CACHE}")
    elseif (NOT "$ENV{HALFV_CACHE}" STREQUAL "")
        set(dir "$ENV{HALFV_CACHE}")
    elseif (NOT "$ENV{XDG_CACHE_HOME}" STREQUAL "")
        set(dir "$ENV{XDG_CACHE_HOME}/halfv-edge")
    elseif (CMAKE_HOST_WIN32)
        set(dir "$ENV{LOCALAPPDATA}/halfv-edge")
    elseif (CMAKE_HOST_APPLE)
        set(dir "$ENV{HOME}/Library/Caches/halfv-edge")
    else()
        set(dir "$ENV{HOME}/.cache/halfv-edge")
    endif()
    get_filename_component(dir "${dir}" ABSOLUTE)
    set(${out} "${dir}" PARENT_SCOPE)
endfunction()

function(halfv_given_source out)
    get_filename_component(given "${HALFV_LLAMA_SOURCE}" ABSOLUTE BASE_DIR "${CMAKE_CURRENT_SOURCE_DIR}")
    foreach(dir "${given}" "${given}/vendor/llama.cpp")
        if (EXISTS "${dir}/src/llama-context.cpp" AND EXISTS "${dir}/ggml/CMakeLists.txt")
            set(${out} "${dir}" PARENT_SCOPE)
            return()
        endif()
    endforeach()
    message(FATAL_ERROR "HALFV_LLAMA_SOURCE=${HALFV_LLAMA_SOURCE} is neither a llama.cpp tree nor an unpacked "
                        "llama-cpp-python ${HALFV_PIN_VERSION}: it has no src/llama-context.cpp.")
endfunction()

# Deletes the half-done work before it gives up.
function(halfv_give_up scratch text)
    file(REMOVE_RECURSE "${scratch}")
    message(FATAL_ERROR "${text}")
endfunction()

function(halfv_download scratch out)
    message(STATUS "Fetching the source of llama-cpp-python ${HALFV_PIN_VERSION} (76 MB, once)")
    execute_process(
        COMMAND "${HALFV_PYTHON}" -m pip download --quiet --no-deps --no-binary llama-cpp-python
                --dest "${scratch}" "llama-cpp-python==${HALFV_PIN_VERSION}"
        RESULT_VARIABLE status OUTPUT_VARIABLE talk ERROR_VARIABLE talk)
    set(sdist "${scratch}/llama_cpp_python-${HALFV_PIN_VERSION}.tar.gz")
    if (NOT status EQUAL 0 OR NOT EXISTS "${sdist}")
        halfv_give_up("${scratch}" "pip could not download llama-cpp-python ${HALFV_PIN_VERSION} (${status}): check the \
network, or unpack its sdist by hand and pass -DHALFV_LLAMA_SOURCE=DIR. pip said:\n${talk}")
    endif()
    file(SHA256 "${sdist}" sha256)
    if (NOT sha256 STREQUAL HALFV_PIN_SHA256)
        halfv_give_up("${scratch}" "The downloaded llama-cpp-python ${HALFV_PIN_VERSION} has sha256 ${sha256}, expected \
${HALFV_PIN_SHA256}: it was deleted and nothing was built from it.")
    endif()
    set(${out} "${sdist}" PARENT_SCOPE)
endfunction()

function(halfv_fetch_source out)
    if (HALFV_LLAMA_SOURCE)
        halfv_given_source(dir)
        set(${out} "${dir}" PARENT_SCOPE)
        return()
    endif()

    halfv_cache_dir(cache)
    string(SHA256 key "${HALFV_PIN_SHA256} ${HALFV_UNPACK}")
    string(SUBSTRING "${key}" 0 8 key)
    set(dir "${cache}/llama.cpp-${HALFV_PIN_COMMIT}-${key}")
    if (NOT EXISTS "${dir}")
        string(RANDOM LENGTH 8 random)
        set(scratch "${cache}/unfinished-${random}")
        file(MAKE_DIRECTORY "${scratch}")
        halfv_download("${scratch}" sdist)
        set(root "llama_cpp_python-${HALFV_PIN_VERSION}/vendor/llama.cpp")
        list(TRANSFORM HALFV_UNPACK PREPEND "${root}/" OUTPUT_VARIABLE patterns)
        execute_process(COMMAND "${CMAKE_COMMAND}" -E tar xzf "${sdist}" -- ${patterns}
                        WORKING_DIRECTORY "${scratch}" RESULT_VARIABLE status ERROR_VARIABLE talk)
        if (NOT status EQUAL 0)
            halfv_give_up("${scratch}" "The llama-cpp-python ${HALFV_PIN_VERSION} sdist could not be unpacked in ${cache}: ${talk}")
        endif()
        # Another build may have finished first: its tree is as good as ours.
        file(RENAME "${scratch}/${root}" "${dir}" RESULT renamed)
        if (NOT EXISTS "${dir}/src/llama-context.cpp")
            halfv_give_up("${scratch}" "Could not put the llama.cpp source into ${dir}: ${renamed}.")
        endif()
        file(REMOVE_RECURSE "${scratch}")
    endif()
    set(${out} "${dir}" PARENT_SCOPE)
endfunction()
