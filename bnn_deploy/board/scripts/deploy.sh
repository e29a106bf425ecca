# The board's half of `bnn-deploy deploy`: POSIX sh, sent through the ssh connection, kept nowhere on the board.
#
# deployment.py puts assignments before it: token (marks our lines among all others), dir (where bundles go), name (the
# bundle's folder in there), folder (the folder in the archive), bytes and sha256 (of the archive), options (of run.sh), patience
# (seconds to wait for another deploy), service ("yes" if it shall be set up).
# Standard input is the laptop: first this script, then "go", then the archive, then nothing until run.sh is done, then
# "service" if it has passed. Its end before that means that the laptop or the connection is gone.

: "${token:?}" "${dir:?}" "${name:?}" "${folder:?}" "${bytes:?}" "${sha256:?}" "${options?}" "${patience:?}" "${service?}"
LC_ALL=C
export LC_ALL
exec 3<&0 2>&1

say() {
    printf '%s %s\n' "$token" "$*"
}

fail() {
    say error "$(printf '%s' "$*" | tr '\n' ' ')"
    exit 1
}

fact() {
    say fact "$1" "$(printf '%s' "$2" | tr '\n\000' '  ')"
}

# --- what the board is: nothing is changed here -----------------------------------------------------------------------

say begin
cd || fail "the home directory $HOME cannot be entered"
case $dir in
/*) ;;
*) dir=${PWD%/}/$dir ;;
esac
parent=$dir
while [ ! -e "$parent" ]; do
    parent=${parent%/*}
    parent=${parent:-/}
done

fact system "$(uname -s)"
fact machine "$(uname -m)"
fact bits "$(getconf LONG_BIT 2>/dev/null)"
# shellcheck disable=SC1091
fact os "$(. /etc/os-release 2>/dev/null && printf '%s' "$PRETTY_NAME")"
fact libc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
fact python "$(python3 -I -B -c '
import struct, sys
try:
    import ensurepip, venv
    found = "yes"
except ImportError:
    found = "no"
print("%d.%d.%d" % sys.version_info[:3], struct.calcsize("P") * 8, found)' 2>/dev/null)"
fact model "$(tr -d '\000' 2>/dev/null </proc/device-tree/model)"
fact cpus "$(nproc 2>/dev/null)"
fact memory "$(grep -E '^(MemTotal|MemAvailable|SwapFree):' /proc/meminfo 2>/dev/null)"
fact directory "$dir"
fact parent "$parent"
fact disk "$(df -Pk "$parent" 2>/dev/null | tail -n 1)"
if [ ! -d "$parent" ]; then
    fact access file
elif [ -w "$parent" ] && [ -x "$parent" ]; then
    fact access yes
else
    fact access no
fi
if [ -e "$dir/$name/venv/complete" ]; then
    fact installed yes
elif [ -d "$dir/$name" ]; then
    fact installed copied
else
    fact installed no
fi
missing=
for tool in tar gzip head sha256sum flock; do
    command -v "$tool" >/dev/null || missing="$missing $tool"
done
fact missing "$missing"
fact systemd "$(command -v systemctl >/dev/null && echo yes)"
say ready

read -r answer <&3 || exit 0
[ "$answer" = go ] || exit 0

# --- copy: into a folder of its own, that gets its name when it is complete -------------------------------------------

clean_up() {
    trap '' HUP INT TERM PIPE
    # run.sh ends what it has started, and removes what is not complete.
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
    [ -z "$watcher" ] || kill "$watcher" 2>/dev/null
    wait
    if [ "$mine" ]; then
        rm -rf "$dir"/.partial-*
        cd / # a directory that is somebody's working directory can be removed, but not on every file system
        made=$dir
        while [ "$made" != "$parent" ]; do
            rmdir "$made" 2>/dev/null || break # not empty
            made=${made%/*}
        done
    fi
}

# What a failed write means: GNU tar does not say that the disk is full.
cannot() {
    # shellcheck disable=SC2046
    set -- "$1" "$2" $(df -Pk "$dir" 2>/dev/null | tail -n 1)
    fail "cannot $1: $2 (${6:-unknown} kB of disk are free); nothing half-installed is left there"
}

mine=
child=
watcher=
trap clean_up EXIT
trap 'exit 130' HUP INT TERM PIPE

while :; do
    reason=$(mkdir -p "$dir" 2>&1) || {
        mine=yes
        fail "cannot make the directory $dir: $reason"
    }
    cd "$dir" || fail "cannot enter the directory $dir"
    # The kernel drops this lock when this script and what inherits it are gone: it is never stale.
    exec 9<.
    # One that was just interrupted needs a moment to clean up.
    flock -n 9 || {
        say busy
        flock -w "$patience" 9
    } || fail "another deploy is running in $dir: wait until it is done, or choose another --directory"
    # Cleaning up, that one may have removed the directory which it had made.
    # shellcheck disable=SC3013 # dash, bash, ksh and busybox have -ef, and POSIX since 2024
    [ . -ef "$dir" ] && break
done
mine=yes

if [ -d "$name" ] && (cd "$name" && sha256sum -c --status SHA256SUMS) >/dev/null 2>&1; then
    say have
else
    # What a power cut left of an earlier copy, or a folder whose files were changed.
    rm -rf "$name" .partial-*
    partial=.partial-$name
    reason=$(mkdir "$partial" 2>&1) || cannot "write into $dir" "$reason"
    say send
    reason=$(head -c "$bytes" <&3 2>&1 >"$partial/bundle.tar.gz") || cannot "write the bundle" "$reason"
    [ "$(wc -c <"$partial/bundle.tar.gz")" -eq "$bytes" ] || exit 1
    [ "$(sha256sum <"$partial/bundle.tar.gz")" = "$sha256  -" ] || fail "the copy of the bundle is damaged; nothing of it is left there"
    reason=$(cd "$partial" && tar -xzof bundle.tar.gz 2>&1) || cannot "unpack the bundle" "$reason"
    mv "$partial/$folder" "$name" || fail "cannot rename the bundle's folder to $name"
    rm -rf "$partial"
    say copied
fi

# --- run --------------------------------------------------------------------------------------------------------------

cd "$name" || fail "cannot enter $dir/$name"
rm -f report.json || fail "cannot remove the old $dir/$name/report.json"
say run
# shellcheck disable=SC2086
sh run.sh $options </dev/null 3<&- &
child=$!
(
    read -r answer <&3
    kill -TERM "$child" 2>/dev/null
) &
watcher=$!
wait "$child"
code=$?
child=
kill "$watcher" 2>/dev/null
cd "$dir" || exit 1
if [ -f "$name/report.json" ]; then
    say report "$(wc -c <"$name/report.json")"
    cat "$name/report.json"
fi
say ended "$code"

# --- service: only if the laptop, which has the report now, says that it passed ----------------------------------------

[ "$service" ] || exit 0
read -r answer <&3 || exit 0
[ "$answer" = service ] || exit 0
# What takes seconds is finished, whatever becomes of the connection.
trap '' HUP INT TERM PIPE
say installing
sh "$name/service.sh" </dev/null 3<&-
say service "$?"
