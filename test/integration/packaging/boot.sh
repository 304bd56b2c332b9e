# boot.sh DIRECTORY: boots a systemd in a throwaway copy of this machine: its root file
# system is this one's, changes are kept in memory, and its processes, mounts, network
# and cgroups are in namespaces, and below cgroups named like DIRECTORY. DIRECTORY/share
# is its /mnt. It ends with the process.
set -euo pipefail
dir=$1

if [[ -z ${INSIDE-} ]]; then
	for cgroup in /sys/fs/cgroup /sys/fs/cgroup/*; do
		[[ -e $cgroup/cgroup.procs ]] || continue
		mkdir -p "$cgroup/${dir##*/}"
		for file in cpuset.cpus cpuset.mems; do # v1 gives a new one none
			[[ ! -e $cgroup/$file ]] || cat "$cgroup/$file" >"$cgroup/${dir##*/}/$file"
		done
		echo $$ >"$cgroup/${dir##*/}/cgroup.procs"
	done
	INSIDE=1 exec unshare --mount --pid --net --ipc --uts --cgroup --fork --kill-child bash "$0" "$dir"
fi

root=$dir/root own=$dir/own
mkdir "$own" "$root"
mount -t tmpfs own "$own"
# over DIRECTORY: what it has here, to be changed.
over() {
	mkdir -p "$own/upper$1" "$own/work$1"
	mount -t overlay -o "lowerdir=$1,upperdir=$own/upper$1,workdir=$own/work$1" overlay "$root$1"
}
over /

mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
if [[ -e /sys/fs/cgroup/cgroup.procs ]]; then
	mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
	mount -t tmpfs cgroups "$root/sys/fs/cgroup"
	while read -r _ target type options _; do
		[[ $target == /sys/fs/cgroup/* && $type == cgroup* ]] || continue
		mkdir "$root$target"
		[[ $options != *name=* ]] || options=none,$options
		[[ $type == cgroup ]] || options=rw
		mount -t "$type" -o "$options" cgroup "$root$target"
	done </proc/mounts
fi
mount --make-rprivate /
# Snapshots cannot be on an overlay.
for dir in dev run tmp var/lib; do
	mount -t tmpfs -o mode=755 "$dir" "$root/$dir"
done
for device in null zero full random urandom tty; do
	touch "$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir -p "$root"/dev/{pts,shm} "$root"/var/lib/{dpkg,systemd}
over /var/lib/dpkg
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount --bind "$1/share" "$root/mnt"

# Nothing but what is tested starts, and it may: container images forbid it with this file.
rm -f "$root/usr/sbin/policy-rc.d"
rm -rf "$root/etc/caisson"
mkdir -p "$root/etc/systemd/system/caissond.service.d"
printf '[Unit]\nDefaultDependencies=no\n' >"$root/etc/systemd/system/test.target"
printf '[Unit]\nDefaultDependencies=no\n[Service]\nStandardOutput=append:/mnt/log\nStandardError=append:/mnt/log\n' \
	>"$root/etc/systemd/system/caissond.service.d/test.conf"
# Not chroot: who enters a container's mount namespace is at its root, not at a process's.
cd "$root"
pivot_root . tmp
umount -l /tmp
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd \
	--system --unit=test.target --log-target=console --show-status=no
