#!/bin/sh
# check_system.sh PYTHON: is everything here that pip cannot install? One line says what to do.
python=${1:-python3}
fail() {
    echo "tar_vis_ros: $*" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    fail "$python is not installed; run: sudo apt-get install -y python3 python3-venv python3-dev cmake g++ make"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || fail "$python does not run"
case $version in
3.10 | 3.11 | 3.12 | 3.13 | 3.14) ;;
*) fail "Python 3.10 to 3.14 is needed and $python is $version; name another one: make PYTHON=python3.11 ..." ;;
esac

case $python in
*python3.*) debian=python$version ;; # not the distribution's default Python
*) debian=python3 ;;
esac
missing=''
"$python" -c 'import venv, ensurepip' 2>/dev/null || missing="$missing $debian-venv"
"$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.isfile(sysconfig.get_path("include") + "/Python.h"))' ||
    missing="$missing $debian-dev"
command -v cmake >/dev/null 2>&1 || missing="$missing cmake"
command -v g++ >/dev/null 2>&1 || missing="$missing g++"
command -v make >/dev/null 2>&1 || missing="$missing make"
[ -z "$missing" ] || fail "not installed:$missing; run: sudo apt-get install -y$missing"
