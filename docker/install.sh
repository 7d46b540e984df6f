#!/bin/sh
# What the Dockerfile's build stages run: `tools`, `dependencies EXTRA...`, `wheels`, `code`.
# What the image gets is in /opt/blackbox.
set -eu

# A certificate authority that came as a secret is for these downloads only.
if [ -s /run/ca.crt ]; then export PIP_CERT=/run/ca.crt; fi
pip() {
    /opt/tools/bin/python -m pip --disable-pip-version-check --no-cache-dir --quiet "$@"
}
into_image() {
    pip --python /opt/blackbox/bin/python install --no-compile --constraint /src/docker/constraints.txt "$@"
}

case "$1" in
tools)
    python3 -m venv /opt/tools
    pip install --constraint /src/docker/constraints.txt hatchling
    python3 -m venv --without-pip /opt/blackbox
    ;;
dependencies)
    shift
    # Both projects' own lines and those of the extras, less the projects themselves.
    /opt/tools/bin/python - "$@" >/tmp/requirements.txt <<'PYTHON'
import sys
import tomllib

zoo = tomllib.load(open("/src/pyproject.toml", "rb"))["project"]
client = tomllib.load(open("/src/clients/python/pyproject.toml", "rb"))["project"]
extras = [line for extra in sys.argv[1:] for line in zoo["optional-dependencies"][extra]]
wanted = zoo["dependencies"] + client["dependencies"] + extras
print("\n".join(line for line in wanted if not line.startswith("blackbox-zoo")))
PYTHON
    into_image --only-binary :all: --requirement /tmp/requirements.txt
    ;;
wheels)
    for project in /src/clients/python /src; do
        (cd "$project" && /opt/tools/bin/python -m hatchling build --target wheel --directory /wheels >/dev/null)
    done
    exit
    ;;
code)
    into_image --no-deps --no-index /wheels/*.whl
    ;;
*)
    echo "expected tools, dependencies, wheels or code, got $1" >&2
    exit 2
    ;;
esac

# What no program reads: tests, type stubs, sources of compiled modules. Then compile, for the file system is read-only.
find /opt/blackbox -depth \( -type d -name tests -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.c' \) \
    -path '*/site-packages/*' -exec rm -rf {} +
/opt/blackbox/bin/python -m compileall -q -j 0 /opt/blackbox/lib
