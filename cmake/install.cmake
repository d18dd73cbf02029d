# Libraries, headers and build.json: into the bindings' package under pip, into lib/ and include/ otherwise.

if (SKBUILD)
    set(prefix halfv_cpp/)
endif()

# Upstream lists its headers relative to its own folders, which install() does not know here.
file(GLOB headers "${HALFV_TREE}/ggml/include/*.h" "${HALFV_TREE}/include/*.h"
     "${HALFV_TREE}/tools/mtmd/mtmd.h" "${HALFV_TREE}/tools/mtmd/mtmd-helper.h")
install(FILES ${headers} ${HALFV_HEADERS} DESTINATION ${prefix}include)

foreach(target ggml-base ggml llama mtmd ${HALFV_BACKENDS} ${HALFV_SERVER_TARGETS})
    set_target_properties(${target} PROPERTIES PUBLIC_HEADER "" PRIVATE_HEADER "")
    if (SKBUILD)
        # A wheel has no links: a versioned name would be a second copy, and could be loaded beside the first.
        set_property(TARGET ${target} PROPERTY VERSION)
        set_property(TARGET ${target} PROPERTY SOVERSION)
    endif()
    install(TARGETS ${target} LIBRARY DESTINATION ${prefix}lib
            RUNTIME DESTINATION ${prefix}lib ARCHIVE DESTINATION ${prefix}lib)
endforeach()

if (SKBUILD)
    # The converter that `halfv convert` runs, with the gguf package of the same age.
    set(sources FILES_MATCHING PATTERN "*.py" PATTERN "__pycache__" EXCLUDE PATTERN "scripts" EXCLUDE)
    install(DIRECTORY "${HALFV_TREE}/conversion" DESTINATION halfv_edge/_upstream ${sources})
    install(DIRECTORY "${HALFV_TREE}/gguf-py/gguf" DESTINATION halfv_edge/_upstream/gguf-py ${sources})
    install(FILES "${HALFV_TREE}/LICENSE" DESTINATION halfv_edge/_upstream)
endif()

set(commit ${HALFV_PIN_COMMIT})
if (HALFV_LLAMA_SOURCE)
    set(commit unknown)
endif()
set(patched true)
if (HALFV_STOCK)
    set(patched false)
endif()
set(https false)
if (TARGET cpp-httplib)
    get_target_property(definitions cpp-httplib INTERFACE_COMPILE_DEFINITIONS)
    if (definitions MATCHES CPPHTTPLIB_OPENSSL_SUPPORT)
        set(https true)
    endif()
endif()
set(HALFV_COMMIT   "@HALFV_COMMIT@") # for the script to fill in
set(web_page       "@HALFV_WEB_PAGE@")
file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/build.json.in" CONTENT [[{
  "version": "@HALFV_VERSION@",
  "commit": "@HALFV_COMMIT@",
  "llama_cpp_python": "@HALFV_PIN_VERSION@",
  "llama_cpp_commit": "@commit@",
  "patched": @patched@,
  "web_page": @web_page@,
  "https": @https@,
  "build_type": "@CMAKE_BUILD_TYPE@",
  "compiler": "@CMAKE_CXX_COMPILER_ID@ @CMAKE_CXX_COMPILER_VERSION@"
}
]] @ONLY)
# Our commit is asked for at every build: it changes without anything that makes CMake configure again.
add_custom_target(halfv-manifest
    COMMAND "${CMAKE_COMMAND}" "-DSOURCE=${CMAKE_SOURCE_DIR}" "-DIN=${CMAKE_BINARY_DIR}/build.json.in"
            "-DOUT=${CMAKE_BINARY_DIR}/bin/build.json" "-DTREE=${HALFV_TREE}" -P "${CMAKE_SOURCE_DIR}/cmake/manifest.cmake"
    BYPRODUCTS "${CMAKE_BINARY_DIR}/bin/build.json" VERBATIM)
add_dependencies(halfv halfv-manifest)
if (TARGET halfv-web-page)
    add_dependencies(halfv-manifest halfv-web-page)
endif()
install(FILES "${CMAKE_BINARY_DIR}/bin/build.json" DESTINATION ${prefix}lib)
