# As overwritten.sh, by other ways to write in place: a piece (rsync --inplace, a patch) with the times
# put back, a shared mapping, and by way of another name of the same file.
folder=$(mktemp -d -p /var/tmp)
program=$folder/program
for way in piece mapping link; do
	rm -f "$program"; cp "$BUILT/replaced-old" "$program"
	"$program"
	touch -r "$program" "$folder/times"
	case $way in
	piece) dd if="$BUILT/replaced-new" of="$program" conv=notrunc status=none; touch -r "$folder/times" "$program" ;;
	mapping) "$BUILT/write_in_place" "$BUILT/replaced-new" "$program" ;;
	link) ln "$program" "$folder/name"; cat "$BUILT/replaced-new" >"$folder/name"; rm "$folder/name" ;;
	esac
	"$program"; echo "$way $?"
done
rm -r "$folder"
