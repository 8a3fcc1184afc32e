#compdef kvtune
# kvtune's completion for zsh: kvtune completion zsh > "${fpath[1]}/_kvtune", or source it behind compinit.
_kvtune() {
  local line
  local -a candidates unfinished
  for line in "${(@f)$("${words[1]}" __complete zsh "${(@)words[2,CURRENT]}" 2>/dev/null)}"; do
    case $line in
    :files) _files ;;
    '') ;;
    *=) unfinished+=("$line") ;;
    *) candidates+=("$line") ;;
    esac
  done
  if (( $#candidates )); then _describe kvtune candidates; fi
  if (( $#unfinished )); then _describe kvtune unfinished -S ''; fi
}
if [[ ${funcstack[1]} == _kvtune ]]; then
  _kvtune "$@"
else
  compdef _kvtune kvtune
fi
