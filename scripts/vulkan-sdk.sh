#!/usr/bin/env bash
# Prints a folder with what a Vulkan build and a run on lavapipe (Mesa's Vulkan on the CPU) need:
#   sdk.cmake   cache variables, for cmake -C
#   env         shell assignments for the run
# Debian packages that the machine lacks are unpacked into the cache; no root, nothing is installed.
# Exit code 77, and one sentence on stderr, where they cannot be had.
set -euo pipefail

PACKAGES=(mesa-vulkan-drivers glslc libvulkan-dev spirv-headers)
NEWER_RELEASE=trixie # where the headers come from when the machine's own are too old

unavailable() {
    echo "$*" >&2
    exit 77
}

command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
    unavailable "Vulkan on lavapipe is set up from Debian packages only, and apt-get or dpkg is not here."
source /etc/os-release

cache=${HALFV_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/halfv-edge}
installed=$(dpkg-query -W -f '${db:Status-Abbrev}${Package} ${Version}\n' "${PACKAGES[@]}" 2>/dev/null || true)
key=$(cat "$0" - <<<"$PRETTY_NAME $installed" | sha256sum)
sdk=$cache/vulkan-${key:0:8}
if [[ -d $sdk ]]; then
    echo "$sdk"
    exit
fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/unfinished-XXXXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{root,debs,apt/sources,apt/machine/partial,apt/newer/partial,apt/archives/partial}

# apt with its own lists, so that neither root nor a recent `apt-get update` is needed.
apt=(-qq -o Dir::Cache="$work/apt" -o APT::Sandbox::User=root -o Debug::NoLocking=1)
machine=("${apt[@]}" -o Dir::State::lists="$work/apt/machine")
newer=("${apt[@]}" -o Dir::State::lists="$work/apt/newer" -o Dir::Etc::sourcelist=/dev/null
       -o Dir::Etc::sourceparts="$work/apt/sources")

download() { # <root> <package>... , apt options in $options
    local root=$1 deb
    shift
    (cd "$work/debs" && apt-get "${options[@]}" download "$@") >>"$work/log" 2>&1 ||
        unavailable "Vulkan packages could not be downloaded ($*): $(tail -n 1 "$work/log")"
    for deb in "$work"/debs/*.deb; do
        dpkg -x "$deb" "$root"
    done
    rm "$work"/debs/*.deb
}

has_new_headers() { # <include folder>; ggml needs VK_EXT_layer_settings in the C++ bindings
    grep -qs LayerSettingEXT "$1/vulkan/vulkan_structs.hpp"
}

echo "Setting up Vulkan on lavapipe in $sdk (once)" >&2
apt-get "${machine[@]}" update >"$work/log" 2>&1 || true # other sources may be broken; what matters fails below
plan=$(apt-get "${machine[@]}" -s --no-install-recommends --no-upgrade install "${PACKAGES[@]}" 2>>"$work/log") ||
    unavailable "The Vulkan packages of $PRETTY_NAME (${PACKAGES[*]}) cannot be had: $(head -n 1 "$work/log")"
missing=$(sed -n 's/^Inst \([^ ]*\) (.*/\1/p' <<<"$plan")
if [[ -n $missing ]]; then
    options=("${machine[@]}")
    download "$work/root" $missing
fi

include=$work/root/usr/include
[[ -d $include/vulkan ]] || include=/usr/include
if ! has_new_headers "$include"; then
    [[ $ID == debian ]] ||
        unavailable "The Vulkan headers of $PRETTY_NAME are too old for ggml, and newer ones are only fetched on Debian."
    mirror=$(apt-get "${machine[@]}" indextargets --format '$(REPO_URI)' \
        'Created-By: Packages' 'Origin: Debian' "Codename: $VERSION_CODENAME" | sed -n 1p)
    cat >"$work/apt/sources/newer.sources" <<END
Types: deb
URIs: $mirror
Suites: $NEWER_RELEASE
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
    apt-get "${newer[@]}" update >"$work/log" 2>&1 ||
        unavailable "The package list of Debian $NEWER_RELEASE could not be read: $(tail -n 1 "$work/log")"
    options=("${newer[@]}")
    download "$work/newer" libvulkan-dev
    has_new_headers "$work/newer/usr/include" ||
        unavailable "libvulkan-dev of Debian $NEWER_RELEASE has no LayerSettingEXT, which ggml needs."
    mv "$work/newer/usr/include" "$work/include"
    # ggml-vulkan finds SPIR-V's headers beside Vulkan's or nowhere
    [[ ! -d $work/root/usr/include/spirv ]] || ln -s ../root/usr/include/spirv "$work/include/spirv"
fi

# What is written from here on names the final folder.
find_file() { # <pattern>: in the unpacked packages, or else the machine's own
    local found
    found=$(cd "$work/root" && compgen -G "$1" | sed -n 1p)
    [[ -n $found ]] && echo "$sdk/root/$found" && return
    compgen -G "/$1" | sed -n 1p | grep . || unavailable "The Vulkan packages hold no $1."
}
loader=$(find_file 'usr/lib/*/libvulkan.so.1')
driver=$(find_file 'usr/lib/*/libvulkan_lvp.so')
manifest=$(find_file 'usr/share/vulkan/icd.d/lvp_icd*.json')
glslc=$(find_file usr/bin/glslc)
spirv=$(find_file usr/share/cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake)
include=$(find_file usr/include/vulkan/vulkan.hpp)
[[ -d $work/include ]] && include=$sdk/include/vulkan/vulkan.hpp

sed "s|\"library_path\": *\"[^\"]*\"|\"library_path\": \"$driver\"|" "${manifest/#$sdk/$work}" >"$work/lavapipe.json"
cat >"$work/sdk.cmake" <<END
set(Vulkan_INCLUDE_DIR "${include%/vulkan/*}" CACHE PATH "" FORCE)
set(Vulkan_LIBRARY "$loader" CACHE FILEPATH "" FORCE)
set(Vulkan_GLSLC_EXECUTABLE "$glslc" CACHE FILEPATH "" FORCE)
set(SPIRV-Headers_DIR "${spirv%/*}" CACHE PATH "" FORCE)
END
cat >"$work/env" <<END
# lavapipe compiles shaders slowly, but remembers them; a CPU device is only used when it is asked for.
export VK_ICD_FILENAMES='$sdk/lavapipe.json' MESA_SHADER_CACHE_DIR='$sdk' GGML_VK_VISIBLE_DEVICES=0
END
if [[ -n $missing ]]; then
    libraries=$(dirname "$(find_file 'usr/lib/*/lib*.so*')")
    echo "export LD_LIBRARY_PATH='$libraries'\"\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}\"" >>"$work/env"
fi

rm -r "$work"/{debs,apt,log} "$work/newer" 2>/dev/null || true
chmod 755 "$work"
mv -T "$work" "$sdk" 2>/dev/null || [[ -d $sdk ]] # another run may have been first
trap - EXIT
echo "$sdk"
