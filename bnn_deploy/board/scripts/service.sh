#!/bin/sh
# Set up the application of this bundle as a service of the user who runs this, and start it:
#
#     sh run.sh && sh service.sh
#
# Only after run.sh has proved that this machine computes the golden results. No root: it is a unit of the user's own
# systemd, in ~/.config/systemd/user, which runs also while nobody is logged in (loginctl enable-linger). A bundle that
# was set up before is replaced; repeated, it changes nothing while the service runs.
#
# Exit codes: 0 the service runs, 1 it was started and does not, 3 it cannot be set up on this machine.
set -eu

CDPATH='' cd -- "$(dirname -- "$0")"

# The laptop may have gone meanwhile: what was begun is finished all the same.
say() { printf '%s\n' "$*" 2>/dev/null || :; }

fail() {
    code=$1
    shift
    say "error: $*"
    exit "$code"
}

one_line() { printf '%s' "$*" | tr '\n' ' '; }

app=$(sed -n 's/^  "app": "\([a-z]*\)",\{0,1\}$/\1/p' manifest.json)
[ "$app" ] || fail 3 'this bundle has no application: make one with bnn-deploy bundle --app'
service=bnn-deploy-$app

# --- what must be so before anything is changed -----------------------------------------------------------------------

venv/bin/python -I -c 'import hashlib, json, sys
report = json.load(open("report.json", "rb"))
mine = hashlib.sha256(open("manifest.json", "rb").read()).hexdigest()
sys.exit(report["passed"] is not True or report["manifest_sha256"] != mine)' 2>/dev/null ||
    fail 3 "the proof of this bundle has not passed on this machine: sh run.sh does it; $service was not set up"

command -v systemctl >/dev/null 2>&1 || fail 3 "$service was not set up: there is no systemd here (no systemctl)"
user=$(id -un)
# Not every way to log in sets it.
XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$(id -u)}
export XDG_RUNTIME_DIR

# Without lingering, systemd ends the user's services with the last login. Users may ask for it themselves, where polkit
# is installed (org.freedesktop.login1.set-self-linger).
if [ "$(loginctl show-user "$user" --property Linger --value 2>/dev/null)" != yes ]; then
    reason=$(loginctl enable-linger "$user" 2>&1) || sudo -n loginctl enable-linger "$user" >/dev/null 2>&1 ||
        fail 3 "$service was not set up: it would end with the login of $user, who may not change that" \
            "($(one_line "$reason")): run 'sudo loginctl enable-linger $user' there once"
fi
tries=0
until reason=$(systemctl --user show-environment 2>&1); do
    tries=$((tries + 1))
    # It has just been started, where nobody was logged in.
    [ "$tries" -lt 5 ] || fail 3 "$service was not set up: systemd does not answer to $user: $(one_line "$reason")"
    sleep 1
done

# --- unit and link ----------------------------------------------------------------------------------------------------

units=$HOME/.config/systemd/user
data=$HOME/.local/share/bnn-deploy
reason=$(mkdir -p "$units" "$data" 2>&1) || fail 3 "$service was not set up: $(one_line "$reason")"
# What runs when the service was started: which bundle, in which environment.
this="$(pwd -P) $(cat venv/complete)"
started=$data/$app.started
if cmp -s app.service "$units/$service.service" && [ "$(cat "$started" 2>/dev/null)" = "$this" ] &&
    systemctl --user is-active --quiet "$service"; then
    say "$service runs, and is of this bundle"
    exit 0
fi
rm -f "$started" || :
reason=$({
    cp app.service "$units/.$service.new" && mv -f "$units/.$service.new" "$units/$service.service" &&
        rm -f "$data/.$app.new" && ln -s "$(pwd -P)" "$data/.$app.new" && mv -fT "$data/.$app.new" "$data/$app"
} 2>&1) || fail 3 "$service was not set up: $(one_line "$reason")"

# --- start ------------------------------------------------------------------------------------------------------------

say "starting $service"
reason=$(systemctl --user daemon-reload 2>&1 && systemctl --user enable --quiet "$service" 2>&1) ||
    fail 3 "$service was not set up: $(one_line "$reason")"
property() { systemctl --user show "$service" --property "$1" --value 2>/dev/null || :; }
good=
# It answers when the program has said that it works, or has ended.
if systemctl --user restart "$service" >/dev/null 2>&1; then
    restarts=$(property NRestarts)
    sleep 2
    [ "$(property ActiveState)" != active ] || [ "$(property NRestarts)" != "$restarts" ] || good=yes
fi
if [ -z "$good" ]; then
    say "the last lines of $service:"
    lines=$(journalctl --user-unit "$service" --no-pager --output cat --lines 10 2>&1) || :
    say "$lines"
    fail 1 "$service was set up and does not run, see its last lines above; systemd goes on trying:" \
        "systemctl --user disable --now $service ends that"
fi
printf '%s\n' "$this" >"$started" || :
say "$service runs"
