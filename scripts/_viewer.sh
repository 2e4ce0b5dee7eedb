# Sourced by the scripts beside it, after _environment.sh: NiiVue for /viewer/, of the version and with the checksum
# that package-lock.json holds, in a node_modules that git ignores. Returns 1, and says what to do, where it is not there.

viewer_npm_ci() { # installs what a folder's package-lock.json says, once
  local folder="$1" what="$2" stamp="$1/node_modules/.complete" wanted
  wanted="$(cksum <"$folder/package-lock.json")"
  [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
  if ! npm --version >/dev/null 2>&1; then
    echo "viewer: there is no npm, which fetches $what: install it (apt-get install npm, or brew install node) and run this again"
    return 1
  fi
  echo "viewer: fetching $what with npm (once)"
  (cd "$folder" && PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD=1 npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --fetch-retries=1) || {
    echo "viewer: npm could not fetch $what, see above"
    return 1
  }
  echo "$wanted" >"$stamp"
}

viewer_ready() {
  viewer_npm_ci "$root/lib/ctsam3d/labelapp/viewer" NiiVue && return
  echo "viewer: /viewer/ will say so; everything else works without it"
  return 1
}
