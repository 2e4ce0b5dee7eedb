# Sourced by the scripts beside it: an up-to-date .venv in the repository root, its bin folder first on PATH.
# Sets `root`. The stamp is removed before an installation and written after it, so a half-made .venv is never trusted.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

environment_failed() {
  echo "environment: $*" >&2
  exit 1
}

environment_supported() { # whether this interpreter runs and is one that numpymaxflow (needed by monailabel) supports
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

environment_create() {
  local candidate python=""
  for candidate in python3.11 python3.12 python3 python; do
    if environment_supported "$candidate"; then
      python="$candidate"
      break
    fi
  done
  if [ -n "$environment_uv" ]; then
    echo "environment: making .venv with uv and ${python:-a Python 3.11 that uv fetches}"
    uv venv --quiet --clear --python "${python:-3.11}" "$root/.venv" ||
      environment_failed "uv could not make .venv; Python 3.11 or 3.12 is needed, install one of them"
  elif [ -n "$python" ]; then
    echo "environment: making .venv with $python"
    "$python" -m venv --clear "$root/.venv" ||
      environment_failed "'$python -m venv' failed; install the venv module of your Python, or uv"
  else
    environment_failed "Python 3.11 or 3.12 is needed (numpymaxflow, which MONAI Label needs, has no release for 3.13)"
  fi
}

environment_install() {
  cd "$root" || return
  if [ -n "$environment_uv" ]; then
    uv pip install --python .venv/bin/python -r requirements.txt
  else
    { .venv/bin/python -m pip --version || .venv/bin/python -m ensurepip; } >/dev/null 2>&1
    .venv/bin/python -m pip install -r requirements.txt
  fi || return
  if [ ! -x .venv/bin/monailabel ]; then # the wheel of monailabel 0.8.5 does not put its command there
    printf '#!/bin/sh\nexec "%s" -m monailabel.main "$@"\n' "$root/.venv/bin/python" >.venv/bin/monailabel &&
      chmod +x .venv/bin/monailabel
  fi
}

environment_ready() {
  local stamp="$root/.venv/.installed" wanted
  wanted="$root $(cat "$root/requirements.txt" "$root/pyproject.toml" | cksum)"
  environment_uv=""
  if uv --version >/dev/null 2>&1; then environment_uv=yes; fi
  if [ -x "$root/.venv/bin/python" ] && "$root/.venv/bin/python" -c '' 2>/dev/null; then
    environment_supported "$root/.venv/bin/python" ||
      environment_failed ".venv holds $("$root/.venv/bin/python" -V), Python 3.11 or 3.12 is needed: remove .venv and run again"
  else
    environment_create
  fi
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    echo "environment: .venv is up to date"
  else
    rm -f "$stamp"
    echo "environment: installing requirements.txt into .venv (about 8 GB; minutes the first time)"
    (environment_install) || environment_failed "the installation failed, see above. Check the network and the free disk space, then run this again"
    echo "$wanted" >"$stamp"
    echo "environment: .venv is complete"
  fi
  export VIRTUAL_ENV="$root/.venv" PATH="$root/.venv/bin:$PATH"
}

environment_ready
