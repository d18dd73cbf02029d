# llama-server of the same source, beside the libraries; with its web page where npm can build it.

set(HALFV_SERVER_TARGETS)
if (HALFV_SERVER)
    set(HALFV_SERVER_TARGETS llama-common llama-server-impl llama-server)
    if (NOT HALFV_STOCK)
        add_dependencies(halfv llama-server)
    endif()
    if (HALFV_WEB_PAGE AND NOT HALFV_STOCK)
        halfv_cache_dir(cache)
        add_custom_target(halfv-web-page
            COMMAND "${CMAKE_COMMAND}" "-DTREE=${HALFV_TREE}" "-DCACHE=${cache}/web-page-${HALFV_PIN_COMMIT}"
                    -P "${CMAKE_SOURCE_DIR}/cmake/web-page.cmake" VERBATIM)
        add_dependencies(llama-ui-assets halfv-web-page)
    endif()
endif()
if (TARGET server-context AND NOT HALFV_STOCK)
    file(GLOB sources CONFIGURE_DEPENDS native/src/server/*.cpp)
    target_sources(server-context PRIVATE ${sources})
    target_include_directories(server-context PUBLIC native/src/server PRIVATE native/src/profile "${HALFV_TREE}/vendor")
    target_link_libraries(server-context PUBLIC cpp-httplib)
endif()
