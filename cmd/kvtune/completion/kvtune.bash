# kvtune's completion for Bash 4 and newer: source <(kvtune completion bash)
_kvtune() {
  local line cur=${COMP_WORDS[COMP_CWORD]} IFS=$'\n'
  COMPREPLY=()
  for line in $("${COMP_WORDS[0]}" __complete bash "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null); do
    case $line in
    :files)
      compopt -o filenames 2>/dev/null
      [[ $cur == [=:]* ]] && cur=
      COMPREPLY+=($(compgen -f -- "$cur"))
      ;;
    *)
      [[ $line == *= ]] && compopt -o nospace 2>/dev/null
      COMPREPLY+=("$line")
      ;;
    esac
  done
}
complete -F _kvtune kvtune
