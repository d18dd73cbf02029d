# A script: writes OUT from IN with the commit of the repository in SOURCE, `-dirty` when there are changes beside it, and
# whether llama-server in TREE has its web page.

# A ceiling above SOURCE: in an sdist, or in somebody else's repository, the commit is not ours to tell.
get_filename_component(parent "${SOURCE}" DIRECTORY)
set(ENV{GIT_CEILING_DIRECTORIES} "${parent}")
set(HALFV_COMMIT unknown)
find_program(HALFV_GIT git)
if (HALFV_GIT)
    execute_process(COMMAND "${HALFV_GIT}" -C "${SOURCE}" describe --always --dirty --exclude=*
                    RESULT_VARIABLE status OUTPUT_VARIABLE said ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
    if (status EQUAL 0)
        set(HALFV_COMMIT "${said}")
    endif()
endif()
set(HALFV_WEB_PAGE false)
if (EXISTS "${TREE}/tools/ui/dist/index.html")
    set(HALFV_WEB_PAGE true)
endif()
configure_file("${IN}" "${OUT}" @ONLY)
