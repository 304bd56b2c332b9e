#!/bin/bash
# test/cri/busybox.sh FILE: builds, unless FILE is there, a static busybox from
# the source package of this Debian release. busybox-static does not serve here:
# its shell runs applets without exec, so that a masked /bin/ls still runs, and
# it lacks pgrep and ipcs. Takes about a minute, and the network once. It needs
# the packages of script/deps cri.
set -euo pipefail
out=${1:?usage: test/cri/busybox.sh FILE}
[[ ! -x $out ]] || exit 0

mkdir -p "$(dirname "$out")"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
log=$dir/log

# A list of source packages of its own: the machine's configuration stays as it is.
mkdir -p "$dir"/{parts,lists/partial,cache/archives/partial,src}
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources}; do
	[[ -e $file ]] || continue
	case $file in
	*.list) sed -n 's/^deb /deb-src /p' "$file" ;;
	*) sed 's/^Types:.*/Types: deb-src/' "$file" ;;
	esac >"$dir/parts/$(basename "$file")"
done
apt() {
	apt-get -q -y -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$dir/parts" \
		-o Dir::State::lists="$dir/lists" -o Dir::Cache="$dir/cache" -o APT::Sandbox::User=root \
		-o Acquire::Retries=3 "$@"
}

# Debian's own static configuration is the base; the later line wins.
build() {
	apt update
	cd "$dir/src"
	apt source --only-source busybox
	cd busybox-*/
	cp debian/config/pkg/static .config
	local option
	for option in FEATURE_SH_STANDALONE FEATURE_PREFER_APPLETS FEATURE_SH_NOFORK SELINUX TC; do
		sed -i "/^CONFIG_$option=/d" .config
		echo "# CONFIG_$option is not set" >>.config
	done
	for option in STATIC PGREP PKILL IPCS IPCRM PIDOF NETSTAT BRCTL FEATURE_BRCTL_SHOW MOUNT TOP ID TOUCH HOSTNAME SLEEP FEATURE_FANCY_SLEEP; do
		sed -i "/CONFIG_$option[= ]/d" .config
		echo "CONFIG_$option=y" >>.config
	done
	yes '' | make oldconfig || [[ ${PIPESTATUS[1]} == 0 ]]
	make -j"$(nproc)" busybox
}
echo "busybox.sh: building busybox from Debian's source package"
if ! (set -e; build) >"$log" 2>&1; then
	tail -n 30 "$log" >&2
	exit 1
fi
install -m 755 "$dir"/src/busybox-*/busybox "$out"
