# As overwritten.sh, by other ways to write in place: a piece (rsync --inplace, a patch) with the times
# put back, a shared mapping, and by way of another name of the same file.
folder=$(mktemp -d -p /var/tmp)
export LD_LIBRARY_PATH=$folder
library=$folder/libreplaced.so
cp "$BUILT/acting" "$folder/"
for way in piece mapping link; do
	rm -f "$library"; cp "$BUILT/libreplaced-old.so" "$library"
	"$folder/acting"
	touch -r "$library" "$folder/times"
	case $way in
	piece) dd if="$BUILT/libreplaced-new.so" of="$library" conv=notrunc status=none; touch -r "$folder/times" "$library" ;;
	mapping) "$BUILT/write_in_place" "$BUILT/libreplaced-new.so" "$library" ;;
	link) ln "$library" "$folder/name"; cat "$BUILT/libreplaced-new.so" >"$folder/name"; rm "$folder/name" ;;
	esac
	"$folder/acting"; echo "$way $?"
done
rm -r "$folder"
