# cmake -DREADELF=... -DLIBRARY=... "-DNEWEST=GLIBC_2.34;GLIBCXX_3.4.29" -P check_versions.cmake
# Fails if the library needs newer versions than NEWEST: it would not load on every machine of the wheel's tag.
execute_process(COMMAND ${READELF} -V ${LIBRARY} OUTPUT_VARIABLE versions COMMAND_ERROR_IS_FATAL ANY)
foreach(newest ${NEWEST})
  string(REGEX REPLACE "_.*" "" name ${newest})
  string(REGEX MATCHALL "Name: ${name}_[0-9.]+" needs "${versions}")
  if(NOT needs)
    message(FATAL_ERROR "${READELF} names no version of ${name} that ${LIBRARY} needs")
  endif()
  foreach(need ${needs})
    string(REPLACE "Name: " "" need ${need})
    string(REPLACE "${name}_" "" need_version ${need})
    string(REPLACE "${name}_" "" newest_version ${newest})
    if(need_version VERSION_GREATER newest_version)
      message(FATAL_ERROR
        "${LIBRARY} needs ${need}, the wheel's tag promises ${newest}: this cross compiler is too new; set BNN_DEPLOY_TARGET=aarch64-zig")
    endif()
  endforeach()
endforeach()
