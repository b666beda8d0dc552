#!/bin/busybox sh
# What runs in the virtual machine instead of an init: each step between two marks that the host looks for.
export PATH=/bin
mount() { busybox mount -t "$1" none "$2"; }
mount proc /proc
mount sysfs /sys
mount devtmpfs /dev
mount cgroup2 /sys/fs/cgroup
mount bpf /sys/fs/bpf
mount securityfs /sys/kernel/security
busybox ip link set lo up
# What some distributions forbid everybody: else an attempt would fail for another reason than ours.
echo 0 >/proc/sys/kernel/unprivileged_bpf_disabled
echo 1 >/proc/sys/kernel/unprivileged_userns_clone 2>/dev/null

# The gateway itself does not run here; a number needs no entry among this machine's users.
busybox mkdir -p /etc/sluice
printf '[gateway]\nuser = "64023"\n' >/etc/sluice/sluice.toml

step() {
    name=$1
    shift
    echo "@@ begin $name"
    "$@" 2>&1
    code=$?
    echo
    echo "@@ end $name $code"
}

step release busybox uname -r
step security busybox cat /sys/kernel/security/lsm
step doctor sluice doctor
step load sluice guard load
step reload sluice guard load
step verify sluice guard verify
busybox mkdir /sys/fs/cgroup/agents.slice/coder
step outside attempts /sys/fs/cgroup 0
step agent attempts /sys/fs/cgroup/agents.slice/coder 0
step nobody attempts /sys/fs/cgroup/agents.slice/coder 65534
step denials sluice guard verify
step unload sluice guard unload --force
busybox poweroff -f
