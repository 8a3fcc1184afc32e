# kvtune's completion for fish: kvtune completion fish > ~/.config/fish/completions/kvtune.fish
function __kvtune_complete
  set -l words (commandline -opc) (commandline -ct)
  for line in ($words[1] __complete fish $words[2..-1] 2>/dev/null)
    if test "$line" = ":files"
      __fish_complete_path (string replace -r '^-[^=]*=' '' -- $words[-1])
    else
      echo $line
    end
  end
end
complete -c kvtune -f -k -a '(__kvtune_complete)'
