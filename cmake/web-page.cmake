# A script: puts llama-server's web page, built by npm from the source in TREE, where upstream's build looks for it.
# It is built once for a llama.cpp and kept in CACHE. Where that cannot be, the server is built without it.

set(dist "${TREE}/tools/ui/dist")
if (NOT EXISTS "${CACHE}/index.html")
    find_program(HALFV_NPM NAMES npm npm.cmd)
    if (NOT HALFV_NPM)
        message(STATUS "npm was not found: llama-server is built without its web page (docs/serve.md)")
        return()
    endif()
    message(STATUS "Building llama-server's web page with npm (two minutes, once)")
    string(RANDOM LENGTH 8 random)
    set(scratch "${CACHE}-unfinished-${random}")
    file(MAKE_DIRECTORY "${scratch}")
    file(COPY "${TREE}/tools/ui/" DESTINATION "${scratch}/source" PATTERN dist EXCLUDE)
    foreach(step ci "run build")
        separate_arguments(words UNIX_COMMAND "${step}")
        execute_process(
            COMMAND "${CMAKE_COMMAND}" -E env "LLAMA_UI_OUT_DIR=${scratch}/dist" "LLAMA_UI_VERSION=" "${HALFV_NPM}" ${words}
            WORKING_DIRECTORY "${scratch}/source" TIMEOUT 1200 RESULT_VARIABLE status OUTPUT_VARIABLE talk ERROR_VARIABLE talk)
        if (NOT status EQUAL 0)
            file(REMOVE_RECURSE "${scratch}")
            message(STATUS "npm ${step} failed (${status}): llama-server is built without its web page\n${talk}")
            return()
        endif()
    endforeach()
    # another build may have finished first: its page is as good as ours
    file(RENAME "${scratch}/dist" "${CACHE}" RESULT renamed)
    file(REMOVE_RECURSE "${scratch}")
endif()
file(COPY "${CACHE}/" DESTINATION "${dist}")
